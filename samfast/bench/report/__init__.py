"""Charts and a page of what was measured, drawn from the files of `samfast bench` and `samfast
eval` only.
"""
