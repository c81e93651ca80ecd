"""The table of routes, each served at the root and again under `/api`."""

from __future__ import annotations

from tornado.web import Application

from pawand.web.base import BaseHandler, UnknownRouteHandler, log_access
from pawand.web.chat import ChatHandler, ChatStreamHandler, MessagesHandler
from pawand.web.info import AgentsHandler, HealthHandler, MetricsHandler, ModelsHandler, OpenApiHandler, ReadyHandler
from pawand.web.services import Services
from pawand.web.sessions import (
    CancelHandler,
    EventsHandler,
    ForkHandler,
    PermissionHandler,
    PermissionsHandler,
    SessionHandler,
    SessionsHandler,
)

PREFIXES = ("", "/api")
ROUTES: list[tuple[str, type[BaseHandler]]] = [
    (r"/health", HealthHandler),
    (r"/ready", ReadyHandler),
    (r"/metrics", MetricsHandler),
    (r"/openapi.json", OpenApiHandler),
    (r"/agents", AgentsHandler),
    (r"/models", ModelsHandler),
    (r"/chat", ChatHandler),
    (r"/chat/stream", ChatStreamHandler),
    (r"/sessions", SessionsHandler),
    (r"/sessions/([^/]*)", SessionHandler),
    (r"/sessions/([^/]*)/messages", MessagesHandler),
    (r"/sessions/([^/]*)/events", EventsHandler),
    (r"/sessions/([^/]*)/cancel", CancelHandler),
    (r"/sessions/([^/]*)/fork", ForkHandler),
    (r"/sessions/([^/]*)/permissions", PermissionsHandler),
    (r"/sessions/([^/]*)/permissions/([^/]*)", PermissionHandler),
]


def make_app(services: Services) -> Application:
    arguments = {"services": services}
    return Application(
        [(prefix + pattern, handler, arguments) for prefix in PREFIXES for pattern, handler in ROUTES],
        default_handler_class=UnknownRouteHandler,
        default_handler_args=arguments,
        log_function=log_access,
        compress_response=False,
    )
