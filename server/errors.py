"""Every error a client can be told about, each with a stable code, mapped once per protocol.

    ServerError                     code             HTTP  gRPC
      InvalidRequest                invalid_request   400  INVALID_ARGUMENT
        InvalidAudio                invalid_audio     400  INVALID_ARGUMENT
        ContextLengthExceeded       context_length_exceeded
      UnsupportedAudio              unsupported_audio 415  INVALID_ARGUMENT
      AuthenticationError           invalid_api_key   401  UNAUTHENTICATED
      ModelNotFound                 model_not_found   404  NOT_FOUND
      PayloadTooLarge               payload_too_large 413  RESOURCE_EXHAUSTED
      RetryableError
        RateLimited                 rate_limited      429  RESOURCE_EXHAUSTED
        Overloaded                  overloaded        503  UNAVAILABLE
          NotReady                  not_ready
      DeadlineExceeded              deadline_exceeded 504  DEADLINE_EXCEEDED
      RequestCancelled              cancelled         499  CANCELLED
      EngineError                   engine_error      500  INTERNAL

The transports hold the mapping (`http_errors`, `grpc_errors`); nothing here knows a status number.
"""

from __future__ import annotations


class ServerError(Exception):
    """Base of all errors told to a client.

    message: for the client, free of internals; one about a field begins with its name or leaves it out.
    param: the request field at fault, or None.
    """

    code = "internal_error"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param

    def rename(self, name: str) -> None:
        """Call the field at fault as this client knows it."""
        if self.param is not None and self.message.startswith(f"{self.param} "):
            self.message = name + self.message.removeprefix(self.param)
        self.param = name

    def __reduce__(self) -> tuple[object, ...]:
        """Keeps `param` when the error crosses a process boundary."""
        return _rebuild, (type(self), self.args, self.__dict__)


def _rebuild(cls: type[ServerError], args: tuple[object, ...], state: dict[str, object]) -> ServerError:
    error = cls.__new__(cls)
    Exception.__init__(error, *args)
    error.__dict__.update(state)
    return error


class InvalidRequest(ServerError):
    """A malformed or contradictory field."""

    code = "invalid_request"


class InvalidAudio(InvalidRequest):
    """Audio missing, empty, corrupt, too short, too long, not finite, or at an impossible rate."""

    code = "invalid_audio"

    def __init__(self, message: str, *, param: str | None = "audio") -> None:
        super().__init__(message, param=param)


class ContextLengthExceeded(InvalidRequest):
    """Prompt and clip leave no room for an answer in the model's position table."""

    code = "context_length_exceeded"


class UnsupportedAudio(ServerError):
    """Bytes that no decoder here recognises as audio; the message names the detected type."""

    code = "unsupported_audio"

    def __init__(self, message: str, *, param: str | None = "audio") -> None:
        super().__init__(message, param=param)


class AuthenticationError(ServerError):
    """Missing or wrong API key."""

    code = "invalid_api_key"


class ModelNotFound(ServerError):
    """The request names a model that is not served here."""

    code = "model_not_found"


class PayloadTooLarge(ServerError):
    """The body or the clip's bytes are larger than the cap."""

    code = "payload_too_large"


class RetryableError(ServerError):
    """An error that passes with time. retry_after_s: seconds after which a retry is worth it."""

    def __init__(self, message: str, *, retry_after_s: float = 1.0, param: str | None = None) -> None:
        super().__init__(message, param=param)
        self.retry_after_s = retry_after_s


class RateLimited(RetryableError):
    """This client sent more requests than its rate allows."""

    code = "rate_limited"


class Overloaded(RetryableError):
    """The queue, the audio budget or the byte budget is full."""

    code = "overloaded"


class NotReady(Overloaded):
    """Loading, draining, or the engine is being restarted."""

    code = "not_ready"


class DeadlineExceeded(ServerError):
    """The request waited or ran past its deadline."""

    code = "deadline_exceeded"


class RequestCancelled(ServerError):
    """The client went away or cancelled."""

    code = "cancelled"


class EngineError(ServerError):
    """The engine failed on this request, died, or hung."""

    code = "engine_error"
