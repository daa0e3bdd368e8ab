"""The protocols of other tools: each file has `router(service) -> fastapi.APIRouter`."""
