"""SAM as the paper describes it: plain modules with the state-dict keys of Meta's code."""
