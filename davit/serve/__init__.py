"""Serve a model by HTTP: images in, JSON out: ``python -m davit.serve MODEL``.

It stands on FastAPI and uvicorn. LitServe, which batches too, is FastAPI and uvicorn itself, with the model in a
process of its own to which each image is sent, and a queue that has no bound. What this service needs beside a
framework, a bounded queue before one model thread, is `davit.serve.batching`.
"""
