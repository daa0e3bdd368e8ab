"""Which replica answers a request: the one to which its image belongs.

Imported by the processes of Ray Serve that hand requests on. They need no torch.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

from samfast.serve.image_owner import image_in_path, owners


class ImageRouter(RequestRouter):
    """Sends the requests of an image to its owner; others to the replica that is least busy.

    A request names its image in its path, or as the session of a call between replicas. The next
    one in order gets it while the owner does not answer.
    """

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """The replicas to try in turn; of each group, Ray takes the least busy."""
        if pending_request is None:
            return [candidate_replicas]
        # Ray asks again at once, without a pause, unless this says that all have been tried.
        pending_request.routing_context.should_backoff = True
        image_id = _image_of(pending_request)
        if image_id is None:
            return [candidate_replicas]
        by_id = {each.replica_id.unique_id: each for each in candidate_replicas}
        return [[by_id[replica]] for replica in owners(image_id, by_id)]


def _image_of(request: PendingRequest) -> str | None:
    """The id of the image that a request is about, if it says so."""
    if not request.metadata.is_http_request:
        return request.metadata.session_id or None
    return image_in_path(_path(request.args))


def _path(args: Sequence[bytes]) -> str:
    """The path of a request over HTTP, whose scope Ray's proxy has pickled for the replica."""
    path: str = pickle.loads(args[0]).asgi_scope["path"]
    return path
