"""`/v1/admin`: what an operator asks for, not a client. Needs an admin key; without one in the settings, it is off."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from service.web import schemas
from service.web.inputs import admitted
from service.web.media_types import JSON

router = APIRouter(prefix="/v1/admin", responses={"4XX": {"model": schemas.Problem}, "5XX": {"model": schemas.Problem}})


@router.post("/reload", response_model=schemas.Models)
async def reload(request: Request, _: Annotated[schemas.NoQuery, Query()]) -> Response:
    """Serve what the store holds now; answers, when that is done, as `GET /v1/models` does."""
    registry = admitted(request).registry
    await registry.reload(retry=True)
    return Response(schemas.Models(models=await registry.summaries()).model_dump_json(), media_type=JSON)
