"""Answer over HTTP, with a page to try it.

    python -m serve.app --model runs/quickstart/model
    SCE_TOKENS=$(openssl rand -hex 32) python -m serve.app --model /shared/model --host 0.0.0.0

The endpoint is on Ray Serve. `make serve` does the first; on a cluster it is `serve deploy
configs/serve.yaml`. Then http://127.0.0.1:8000/ is a page to try it, /docs the interface. One model
with one replica is in the gateway's process (`--no-one-process`: in its own). Ctrl+C ends it when
the requests that it accepted are answered. Exit code 0: ended, 1: failed, 2: wrong settings.
"""

# No `from __future__ import annotations`: Ray reads the type of the builder's argument.
import ipaddress
import logging
import signal
import socket
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray import serve
from ray.serve import Application, Deployment
from ray.serve.config import BackpressureConfig, HTTPOptions
from ray.serve.schema import ApplicationStatus

from sce.bulk.request import identify_model
from sce.config import load_config
from sce.distributed.resources import ClusterSize, check_fits, cluster_size
from sce.distributed.session import ensure_ray, shared_session, starts_own
from sce.errors import ConfigError, InputError
from serve import ray_settings
from serve.auth import Guard, read_tokens, warn_of_readers
from serve.files import check_files_root
from serve.gateway import Gateway
from serve.label_sets import match_label_sets
from serve.model import ModelReplica
from serve.settings import ModelSettings, Scaling, ServeConfig

APP_NAME = "sce"

log = logging.getLogger(__name__)


def build(args: ServeConfig) -> Application:
    """The application: a gateway, and a deployment for each model.

    Raises:
        ConfigError: tokens that cannot be used, or none behind Ray's HAProxy; batches, where others
            can enter Ray's folder; replicas for which the cluster has no room; label sets that are
            not there, are damaged or fit no model.
    """
    size = cluster_size() if ray.is_initialized() else None
    if size is not None and args.batches.allowed and (shared := shared_session()):
        raise ConfigError(
            f"batches: other users of this machine can enter Ray's folder {shared}, and whoever "
            "writes there runs code as the server. Start Ray with --temp-dir (RAY_TMPDIR) below a "
            "folder of mode 0700, or leave batches.input_roots and output_roots empty."
        )
    check_files_root(args.batches)
    digests = [Guard.digest(token) for token in read_tokens(args)]
    if not digests and ray_settings.behind_haproxy():
        raise ConfigError(
            f"{ray_settings.HAPROXY}=1: HAProxy reaches the gateway from this machine, whoever "
            "asked it, so tokens are required (SCE_TOKENS, tokens_file)."
        )
    if not digests:
        log.warning(
            "no tokens are set: only this machine is answered; a proxy in front of this server "
            "needs tokens (SCE_TOKENS, tokens_file)"
        )
    if args.tokens_file is not None:
        warn_of_readers(args.tokens_file)
    timeout = args.limits.body_timeout_seconds + args.limits.request_timeout_seconds
    handles, configs = {}, {}
    scaling, num_gpus = args.gateway, 0.0
    held: dict[str, Any] | None = None
    gpus = {name: _gpus(name, settings, size) for name, settings in args.named_models().items()}
    if size is not None:
        _check_room(args, gpus, size)
    sets = match_label_sets(args.named_models(), args.named_label_sets())
    for name, settings in args.named_models().items():
        configs[name] = settings.model_dump(mode="json", exclude={"scaling"})
        if args.one_process:  # it is the only one
            held = configs[name] | {"label_sets": sets[name]}
            num_cpus = args.gateway.num_cpus + settings.scaling.num_cpus
            scaling = settings.scaling.model_copy(update={"num_cpus": num_cpus})
            num_gpus = gpus[name]
            continue
        deployment = _deployment(ModelReplica).options(
            name=f"model-{name}",
            user_config=configs[name] | {"label_sets": sets[name]},
            max_ongoing_requests=2 * args.limits.max_concurrent_requests,
            **_options(settings.scaling, timeout, gpus[name]),
        )
        handles[name] = deployment.bind(name)
    # Where it listens itself, nobody else would see that it is gone.
    own_look = {"health_check_period_s": 2.0} if ray_settings.is_direct() else {}
    gateway = _deployment(serve.ingress()(Gateway)).options(
        name="gateway",
        user_config=args.model_dump(include={"limits", "log_texts", "batches"})
        | {"models": configs, "held": held},
        # More than are let in, so that it is the gateway that says no, in words; Ray's proxy says
        # so to the rest (429, in plain text), without reading their bodies. A busy router lets many
        # wait though the replica is free.
        max_ongoing_requests=4 * args.limits.max_concurrent_requests,
        max_queued_requests=4 * args.limits.max_concurrent_requests,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=1),
        **_options(scaling, timeout, num_gpus) | own_look,
    )
    return gateway.bind(handles, digests, args.cors_origins, name if held else None)


def _deployment(kind: Any) -> Deployment:
    return serve.deployment(kind)  # type: ignore[return-value]  # typed as a decorator


def _options(scaling: Scaling, timeout: float, gpus: float) -> dict[str, Any]:
    actor: dict[str, Any] = {"num_cpus": scaling.num_cpus}
    if gpus:
        actor["num_gpus"] = gpus
    if scaling.accelerator_type:
        actor["accelerator_type"] = scaling.accelerator_type
    options: dict[str, Any] = {
        "max_surge_percent": 100,  # a new version is there before the old one goes
        "ray_actor_options": actor,
        "graceful_shutdown_timeout_s": timeout + 10.0,
        "graceful_shutdown_wait_loop_s": 0.5,
        "health_check_period_s": 10.0,
    }
    if scaling.max_replicas == scaling.min_replicas:
        return options | {"num_replicas": scaling.min_replicas}
    sizes = {"min_replicas", "max_replicas", "target_ongoing_requests"}
    return options | {"autoscaling_config": scaling.model_dump(include=sizes)}


def _gpus(name: str, settings: ModelSettings, size: ClusterSize | None) -> float:
    """A replica's GPUs. Raises `ConfigError` where it must have one and the cluster has none."""
    if settings.device == "cpu":
        return 0.0
    if settings.scaling.num_gpus is not None:
        return settings.scaling.num_gpus
    found = 1.0 if size is not None and size.gpus >= 1 else 0.0
    if settings.device == "cuda" and size is not None and not found:
        raise ConfigError(f"models.{name}.device is 'cuda', but the cluster has {size}.")
    log.info("%s: %s", settings.path, "a GPU each replica" if found else "on CPUs (no GPU)")
    return found


def _check_room(args: ServeConfig, gpus: Mapping[str, float], size: ClusterSize) -> None:
    """Refuse replicas that Serve would wait for without end."""
    asked = {f"models.{name}": (m.scaling, gpus[name]) for name, m in args.named_models().items()}
    asked["gateway"] = (args.gateway, 0.0)
    for name, (scaling, num_gpus) in asked.items():
        where = name if name == "gateway" else f"{name}.scaling"
        replicas, cpus = scaling.min_replicas, scaling.num_cpus
        kind = scaling.accelerator_type
        check_fits(size, name, replicas, "replicas", cpus, num_gpus, kind, where)
    cpus = sum(scaling.min_replicas * scaling.num_cpus for scaling, _ in asked.values())
    all_gpus = sum(scaling.min_replicas * num_gpus for scaling, num_gpus in asked.values())
    if cpus > size.cpus or all_gpus > size.gpus:
        raise ConfigError(
            f"{', '.join(asked)} ask together for {cpus:g} CPUs and {all_gpus:g} GPUs, but the "
            f"cluster has {size}. Lower min_replicas, num_cpus or num_gpus of their scaling."
        )


def check(config: ServeConfig) -> None:
    """Refuse what would fail later, in words.

    Raises:
        InputError: no such model; label sets that are not there, are damaged or fit no model; a
            port in use; a host beyond this machine without a token.
    """
    default = ServeConfig.model_fields["model"].default
    for name, settings in config.named_models().items():
        try:
            identify_model(settings.path)
        except InputError as error:
            made = " `make quickstart` or `sce train --config quickstart` trains it."
            hint = made if settings.path == default else ""
            raise InputError(f"{name}: {error}{hint}") from None
    match_label_sets(config.named_models(), config.named_label_sets())
    check_files_root(config.batches)
    local = config.host == "localhost"
    if not local:
        try:
            local = ipaddress.ip_address(config.host).is_loopback
        except ValueError:
            raise ConfigError(
                f"host: {config.host!r} is no address of this machine; 0.0.0.0 means all."
            ) from None
    try:
        with socket.create_server((config.host, config.port)):
            pass
    except OSError as error:
        raise ConfigError(
            f"port: {config.host}:{config.port} cannot be used ({error.strerror}); "
            "choose another with --port."
        ) from None
    if "*" in config.cors_origins and not read_tokens(config):
        raise ConfigError(
            "cors_origins: '*' lets every page that this machine's browser opens ask a server that "
            "has no tokens. Name the pages, or set SCE_TOKENS or tokens_file."
        )
    if not (read_tokens(config) or local):
        raise ConfigError(
            f"host: {config.host} is reached from other machines, and no token is set. Set "
            "SCE_TOKENS or tokens_file, or stay with 127.0.0.1."
        )


def main(argv: Sequence[str] | None = None) -> int:
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S"
    )
    prog = sys.argv[0] if sys.argv[0].startswith("sce ") else "serve.app"
    arguments = sys.argv[1:] if argv is None else argv
    before = {number: signal.getsignal(number) for number in SIGNALS}
    stop = threading.Event()
    try:
        _listen(stop)
        config = load_config(ServeConfig, arguments, prog, __doc__ or "")
        config.apply_umask()
        check(config)
        if config.one_process is None:
            config = config.model_copy(update={"one_process": config.fits_one_process})
        ray_settings.apply(config.port if config.one_process and starts_own() else None)
        ensure_ray(dashboard=config.dashboard or config.batches.allowed)
        _listen(stop)  # again: Ray has set handlers of its own
        application = build(config)
        if not stop.is_set():
            _serve(config, application, stop)
    except InputError as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 2
    except SystemExit as exit:
        if exit.code != signal.SIGTERM:  # so Ray ends a process while it starts
            raise
    finally:
        ray.shutdown()
        for number, handler in before.items():
            signal.signal(number, handler)
    return 0


def _listen(stop: threading.Event) -> None:
    """Let signals set `stop`. An exception that a handler raised would come up anywhere in Ray."""
    for number in SIGNALS:
        signal.signal(number, lambda *_: stop.set())


def _serve(config: ServeConfig, application: Application, stop: threading.Event) -> None:
    """Until `stop`, which may come while the model is loaded; then accepted requests are
    answered.

    Raises:
        RuntimeError: a deployment cannot be started.
    """
    # Ray has a proxy also where the gateway listens itself: it refuses all (serve/proxy.py).
    port = _free_port(config.host) if ray_settings.is_direct() else config.port
    options = HTTPOptions(host=config.host, port=port)
    serve.start(http_options=options, logging_config=LOGGING)
    target = serve.RunTarget(application, APP_NAME, "/", LOGGING)
    serve.run_many([target], wait_for_applications_running=False)
    if _started(stop):
        local = "from this machine only, and through no proxy (no token is set)"
        guarded = "with a token" if read_tokens(config) else local
        url = f"http://{config.host}:{config.port}"
        print(f"Serving {', '.join(config.named_models())} {guarded}:", flush=True)
        print(f"  {url}/       a page to try it", flush=True)
        print(f"  {url}/docs   the interface (Ctrl+C ends)", flush=True)
        stop.wait()
    print("Ending: accepted requests are answered first.", flush=True)
    serve.delete(APP_NAME)  # answers go through the proxies, which a shutdown kills at once
    serve.shutdown()


def _free_port(host: str) -> int:
    with socket.create_server((host, 0)) as probe:
        return int(probe.getsockname()[1])


def _started(stop: threading.Event) -> bool:
    """Wait until the application runs; False where `stop` came before."""
    while not stop.wait(LOOK_SECONDS):
        found = serve.status().applications[APP_NAME]
        if found.status == ApplicationStatus.RUNNING:
            return True
        if found.status == ApplicationStatus.DEPLOY_FAILED:
            raise RuntimeError(f"the server cannot be started: {found.message}")
    return False


LOOK_SECONDS = 0.2
SIGNALS = (signal.SIGINT, signal.SIGTERM)
LOGGING = {"log_level": "WARNING", "enable_access_log": False}

if __name__ == "__main__":
    sys.exit(main())
