"""The explorer: an HTTP application over finished runs, and a static page of chosen features.

`app` needs the extra `web` (FastAPI, uvicorn) and is imported where it is served; `export` needs neither. So nothing is imported here.
"""
