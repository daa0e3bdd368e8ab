"""`samfast serve`: one model for many people and their tools, over HTTP.

    settings.py         Settings: every limit and address
    service.py          SegmentationService: images, clicks, everything, for many callers
    app.py              create_app: the service as a FastAPI application
    click_endpoint.py   the same for clicks, before FastAPI, which costs more than they do
    batch_policy.py     which requests the device takes next, without tensors or HTTP
    device_worker.py    the one thread that uses the device
    page/               the page at /
    wires/              the protocols of other tools, one file each
    http_processes/     processes that speak HTTP for the device's process

Needs the extra `serve`. The engine knows nothing of this package.
"""
