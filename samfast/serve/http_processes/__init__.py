"""Processes that speak HTTP for the device's process.

    pooled_server.py    the server beside them: uvicorn, at a socket of the file system
    process_pool.py     starts them, keeps them running, ends them
    http_process.py     one of them: clicks go over a channel, all else is handed on as HTTP
    click_frames.py     what the channel carries
    click_client.py     its end in the HTTP process
    click_listener.py   its end in the process that has the device
    handed_on.py        requests that are handed on, at both ends

Python runs one thread of a process at a time, so in one process HTTP and the host's part of the
engine wait for each other.
"""
