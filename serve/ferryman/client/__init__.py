"""Client and AsyncClient: ask a server about pictures, with deadlines, safe retries and typed answers.

Both have the same methods, and each method is written once, in `calls`. A method that asks raises the FerrymanError
that the server's status means: UsageError and ImageError for what was sent, ModelNotFoundError, TaskError, BundleError
for a model that can't be served, OverloadedError, DeadlineError, UnavailableError when no server answers, EngineError;
and FileAccessError for a picture that can't be read. `images` are encoded JPEG, PNG, WebP or BMP pictures, or paths of
such files.

    calls          what can be asked: from a method's arguments to its message, and from the response to the answer
    attempts       a call's life: deadline, retries, readiness
    security       TLS, a client's certificate, a token
    blocking, asynchronous    the two clients: they send and wait, and nothing else
"""

from ferryman.answers import Answer, Answerer, Frame, ModelFacts, OutputParity
from ferryman.client.asynchronous import AsyncClient
from ferryman.client.attempts import RetryPolicy
from ferryman.client.blocking import Client
from ferryman.client.security import Security

__all__ = [
    "Answer",
    "Answerer",
    "AsyncClient",
    "Client",
    "Frame",
    "ModelFacts",
    "OutputParity",
    "RetryPolicy",
    "Security",
]
