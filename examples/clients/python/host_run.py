"""Reads a run over gRPC, for the other clients in this folder. Copy it together with them.

    pip install grpcio grpcio-tools

Run it from the repository, or set PROTO to the folder of the .proto files. `Run.watch` yields all events.
`Run.batches` is for bridges to other trackers: it omits events that a resume of the run superseded, and it
can continue from a cursor.
"""

import argparse
import hashlib
import ipaddress
import json
import os
import pathlib
import queue
import signal
import sys
import threading
import time

import grpc

proto = pathlib.Path(__file__).resolve().parents[3] / "proto"
sys.path.insert(0, os.environ.get("PROTO", str(proto)))
pb, services = grpc.protos_and_services("tracker/v1/tracker.proto")
# Keepalive pings detect that the server has vanished, even while there are no events.
ALIVE = [("grpc.keepalive_time_ms", 60_000), ("grpc.http2.max_pings_without_data", 0)]
AGAIN = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED)
GO_ON = (pb.WATCH_END_REASON_UNSPECIFIED, pb.WATCH_END_REASON_SERVER_STOPPING, pb.WATCH_END_REASON_TOO_SLOW)


def fail(what, hint, kind=SystemExit):
    raise kind(f"error: {' '.join(str(what).split())}\nhint: {hint}")


class Lost(SystemExit):
    """The connection to the server was lost: the server was killed, or its machine cannot be reached."""


class Stopped(SystemExit):
    """This client received SIGINT or SIGTERM."""


def connect(doc, *options):
    """Returns the run from the command line, and all arguments. Each option is (flag, default, help)."""
    usage = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    usage.add_argument(
        "address", help="the address that `host run` or `host serve` prints; https://… with TLS"
    )
    usage.add_argument(
        "run", nargs="?", default="", help="the run's name; optional if the server has only one run"
    )
    usage.add_argument("--token-env", metavar="NAME", help="environment variable with the token")
    usage.add_argument(
        "--tls-ca",
        metavar="FILE",
        help="the certificate authority, if it is not a public one; "
        "if the server uses --tls self-signed, the run's tls-cert.pem",
    )
    for flag, default, about in options:
        usage.add_argument(flag, default=default, type=type(default), help=f"{about} (default: {default})")
    args = usage.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):  # raises an exception, so that files and runs are closed
        signal.signal(number, stop)
    token = os.environ.get(args.token_env, "").strip() if args.token_env else ""
    if args.token_env and not token:
        fail(
            f"the environment variable is not set or empty: {args.token_env}",
            f"export {args.token_env}=TOKEN",
        )
    return Run(args.address, args.run, token, args.tls_ca), args


def stop(number, _):
    raise Stopped(128 + number)


class Names:
    """Converts metric names to names that a tool accepts. An invalid character becomes `:HEX:`, and an empty
    part of a path becomes `::`. A name that is too long is truncated and ends with its hash. Converted names
    are unique, and each conversion is reported once."""

    def __init__(self, tool, taken=lambda char: True, reserved=lambda name: False, paths=False, most=None):
        self.tool, self.taken, self.reserved, self.paths, self.most = tool, taken, reserved, paths, most
        self.known = {}

    def __call__(self, name):
        if name not in self.known:
            self.known[name] = self.written(name)
            if self.known[name] != name:
                print(
                    f"note: {self.tool} does not accept the name {name!r}, using {self.known[name]!r}",
                    file=sys.stderr,
                )
        return self.known[name]

    def written(self, name):
        escaped = "".join(char if self.taken(char) and char != ":" else f":{ord(char):x}:" for char in name)
        parts = escaped.split("/") if self.paths else [escaped]
        parts = [
            part.replace(".", ":2e:") if self.paths and part in (".", "..") else part or "::"
            for part in parts
        ]
        whole = "/".join(parts)
        if self.reserved(whole):
            whole = f":{ord(whole[0]):x}:{whole[1:]}"
        if self.most and len(whole) > self.most:
            whole = f"{whole[: self.most - 18]}:{hashlib.sha256(name.encode()).hexdigest()[:16]}:"
        return whole


class Batch:
    """The events received since the last batch."""

    def __init__(self, cursor=0, start_over=False):
        self.cursor = cursor  # the cursor after this batch
        self.start_over = start_over  # if set, discard all earlier batches, because all valid events follow
        self.metrics = []  # events with metrics; their fields include seq, time_us, step and metrics.values
        self.others = []  # all other events, as (kind, event)
        self.end = ""  # set in the last batch: why the run ended, such as `RUN_FINISHED` or `RUN_CRASHED`

    def facts(self):
        """Returns the latest checkpoint, the latest problem and each sink's latest delivery in this batch. Used by
        tools that store text with a run."""
        facts = {}
        for kind, event in self.others:
            if kind == "checkpoint_written":
                facts["checkpoint"] = event.checkpoint_written.name
            if kind == "delivery":
                delivery = event.delivery
                facts[f"delivery.{delivery.sink}"] = (
                    f"step {delivery.checkpoint_step} {delivery_state(event)}"
                )
            if trouble(kind, event):
                facts["trouble"] = trouble(kind, event)
        return facts


class Run:
    def __init__(self, address, name="", token="", tls_ca=None):
        scheme, _, self.address = address.rpartition("://")
        if scheme == "https":
            try:
                roots = pathlib.Path(tls_ca).read_bytes() if tls_ca else None
            except OSError as error:
                fail(f"cannot read the certificate: {error}", "use a PEM file for --tls-ca")
            channel = grpc.secure_channel(self.address, grpc.ssl_channel_credentials(roots), ALIVE)
        else:
            if token and not is_this_machine(self.address):
                fail(
                    f"refusing to send a token unencrypted to another machine: {address}",
                    "write the address as https://…",
                )
            channel = grpc.insecure_channel(self.address, ALIVE)
        self.metadata = [("authorization", f"Bearer {token}")] if token else []
        self.service = services.TrackerServiceStub(channel)
        try:
            answer = self.service.GetRun(pb.GetRunRequest(run=name), metadata=self.metadata, timeout=30)
        except grpc.RpcError as error:
            self.refused(error)
        self.name, self.created_us = answer.run.name, answer.run.created_time_us
        self.id = f"{self.created_us:x}"  # tells runs with the same name apart
        self.config = effective(json.loads(answer.config_json or "{}"))
        self.connected = True  # whether the stream is connected

    def refused(self, error, kind=SystemExit):
        hints = {
            grpc.StatusCode.UNAUTHENTICATED: "use --token-env NAME with the server's token in that variable",
            grpc.StatusCode.NOT_FOUND: "run `host runs list` for the names",
            grpc.StatusCode.INVALID_ARGUMENT: "add the run's name after the address",
        }
        hint = hints.get(
            error.code(),
            "the address is in grpc.addr in a live run's folder; for a finished run, start `host serve` "
            "and run this again with its address",
        )
        if "CERTIFICATE" in error.details():
            hint = "use --tls-ca FILE with the certificate authority; if the server uses --tls self-signed, FILE is the run's tls-cert.pem"
        fail(f"{error.details()}: {self.address}", hint, kind)

    def watch(self, after=0, follow=True):
        """Yields the responses with the events after the cursor. Reopens a broken connection, and raises
        `Lost` if that fails for ten seconds."""
        failures = 0
        while True:
            try:
                request = pb.WatchEventsRequest(run=self.name, after_seq=after, follow=follow)
                for piece in self.service.WatchEvents(request, metadata=self.metadata):
                    self.connected = True
                    yield piece
                    after, failures = piece.cursor, 0
                    if piece.HasField("end") and piece.end.reason not in GO_ON:
                        return
            except grpc.RpcError as error:
                failures += 1
                self.connected = False
                if error.code() not in AGAIN:
                    self.refused(error)
                if failures > 10:
                    self.refused(error, Lost)
                time.sleep(1)

    def batches(self, after=0):
        """Yields batches of the valid events after the cursor, until the run ends. A batch contains all
        events that arrived while the caller was busy.

        A resume can go back to a checkpoint and supersede later events. Events that are not superseded are
        valid. If an event is superseded after it was yielded, by this call or before the cursor, a batch with
        `start_over` follows, and then all valid events from the beginning of the run."""
        # (seq, step) of each resume that went back. Events with a lower seq and a higher step are superseded.
        back = []
        seen, top = 0, 0  # the seq of the last event processed, and the highest valid step so far

        def look(event):
            nonlocal seen, top
            seen, top = event.seq, max(top, event.step if event.WhichOneof("body") == "metrics" else 0)
            if event.WhichOneof("body") == "superseded" and event.superseded.from_step < top:
                top = event.superseded.from_step
                back.append((event.seq, top))
                return True
            return False

        def add(batch, piece, upto=None):
            for event in piece.events:
                if (
                    upto
                    and event.seq > upto
                    or any(event.seq < seq and event.step > step for seq, step in back)
                ):
                    continue
                kind = event.WhichOneof("body")
                if kind == "metrics":
                    batch.metrics.append(event)
                else:
                    batch.others.append((kind, event))
            batch.cursor = min(piece.cursor, upto or piece.cursor)
            if piece.HasField("end") and not upto:
                batch.end = pb.WatchEndReason.Name(piece.end.reason).removeprefix("WATCH_END_REASON_")

        def again(upto):
            yield Batch(start_over=True)
            for piece in self.watch(0, follow=False):
                batch = Batch()
                add(batch, piece, upto)
                yield batch
                if piece.cursor >= upto:
                    return

        for piece in self.watch(0, follow=False):  # find all earlier resumes that went back to a checkpoint
            for event in piece.events:
                look(event)
        if after and any(seq > after for seq, _ in back):
            yield from again(after)
        for pieces in at_once(self.watch(after)):
            events = [event for piece in pieces for event in piece.events]
            went_back = [event for event in events if event.seq > seen and look(event)]
            if went_back and events[0].seq > 1:
                yield from again(events[0].seq - 1)
            batch = Batch()
            for piece in pieces:
                add(batch, piece)
            yield batch


def delivery_state(event):
    return pb.DeliveryState.Name(event.delivery.state).removeprefix("DELIVERY_STATE_").lower()


def trouble(kind, event):
    """Returns a line of text about the problem that an event reports, or None if it reports no problem."""
    body = getattr(event, kind) if kind else None
    if kind == "warning":
        return body.message
    if kind == "plugin_fault":
        return f"{body.plugin} failed in {body.call}: {body.message}"
    if kind == "checkpoint_failed":
        return f"writing a checkpoint failed: {body.reason}"
    if kind == "delivery" and body.state == pb.DELIVERY_STATE_FAILED:
        return f"{body.sink} failed to deliver the checkpoint of step {body.checkpoint_step}: {body.detail}"
    return None


def effective(config):
    """Returns a copy of a configuration with the effective values. Its plugins are in a table whose keys are
    their ids. If several plugins have the same id, the key of the second is `ID-2`, as in the names of its
    metrics."""
    found = config.get("record", {}).get("plugin", [])

    def named(tables):
        made, ids = {}, []
        for place, table in enumerate(tables):  # for a plugin loaded by path, only table `record` has the id
            ids.append(
                table.get("id") or (found[place].get("id") if place < len(found) else None) or "unknown"
            )
            again = ids.count(ids[-1])
            made[ids[-1] + (f"-{again}" if again > 1 else "")] = table
        return made

    config = dict(config)
    if found:
        config["record"] = config["record"] | {"plugin": named(found)}
    if isinstance(config.get("plugin"), list):
        config["plugin"] = named(config["plugin"])
        for table in config["plugin"].values():  # a plugin's weight decay overrides the run's
            if "weight_decay" in table:
                config["weight_decay"] = table["weight_decay"]
    return config


def flat(config):
    """Flattens a configuration into one table with keys such as `table.key`, or `plugin/hub-git/repo` for
    plugins."""

    def leaves(value, key):
        if not isinstance(value, dict):
            return {key: value}
        return {
            name: leaf
            for word, inner in value.items()
            for name, leaf in leaves(inner, f"{key}.{word}").items()
        }

    made = {}
    for key, value in config.items():
        if key == "plugin" and isinstance(value, dict):
            for plugin, table in value.items():
                for word, inner in table.items():
                    made |= leaves(inner, f"plugin/{plugin}/{word}")
        else:
            made |= leaves(value, key)
    return made


def is_this_machine(address):
    name = address.rpartition(":")[0].strip("[]")
    try:
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def at_once(pieces, most=64):
    """Yields lists of the responses that arrived while the caller was busy. A daemon thread reads them."""
    waiting = queue.Queue(most)

    def read():
        try:
            for piece in pieces:
                waiting.put(piece)
            waiting.put(EOFError())
        except BaseException as error:  # raised again in the caller's thread
            waiting.put(error)

    threading.Thread(target=read, name="watch", daemon=True).start()
    while True:
        got = [waiting.get()]
        while isinstance(got[-1], pb.WatchEventsResponse) and len(got) < most and not waiting.empty():
            got.append(waiting.get())
        end = None if isinstance(got[-1], pb.WatchEventsResponse) else got.pop()
        if got:
            yield got
        if isinstance(end, EOFError):
            return
        if end:
            raise end
