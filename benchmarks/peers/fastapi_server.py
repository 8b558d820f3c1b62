"""The floor under every server in FastAPI: a route that reads the body and does nothing with it.

python fastapi_server.py PORT
"""

import sys

import uvicorn
from fastapi import FastAPI, Request

app = FastAPI()


@app.post("/v1/encode")
async def encode(request: Request) -> dict[str, int]:
    """How many bytes came."""
    return {"bytes": len(await request.body())}


if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[1]), loop="uvloop", http="httptools", access_log=False, log_level="warning")
