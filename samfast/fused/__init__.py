"""The image encoder in few passes over memory: what lies between two matrix products is one kernel."""
