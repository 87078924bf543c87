"""Reads a run over gRPC, for the clients beside this file. Copy it together with them.

    pip install grpcio grpcio-tools

Run it from the repository, or give PROTO=folder of the .proto files. `Run.watch` gives the events as they are.
`Run.batches` is for bridges that write them elsewhere: it leaves out what a resume superseded, and it resumes from
a cursor.
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
# A server that vanished without a word is noticed in between the events, too.
ALIVE = [("grpc.keepalive_time_ms", 60_000), ("grpc.http2.max_pings_without_data", 0)]
AGAIN = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED)
GO_ON = (pb.WATCH_END_REASON_UNSPECIFIED, pb.WATCH_END_REASON_SERVER_STOPPING, pb.WATCH_END_REASON_TOO_SLOW)


def fail(what, hint, kind=SystemExit):
    raise kind(f"error: {' '.join(str(what).split())}\nhint: {hint}")


class Lost(SystemExit):
    """The server is gone without a word: its process was killed, or the machine is not reached any more."""


class Stopped(SystemExit):
    """This client was asked to end."""


def connect(doc, *options):
    """The run that the command line names, and its other arguments: each option is (flag, default, help)."""
    usage = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    usage.add_argument("address", help="what `host run` or `host serve` prints; https://… where it has TLS")
    usage.add_argument("run", nargs="?", default="", help="may be left out where the server has one run only")
    usage.add_argument("--token-env", metavar="NAME", help="the variable that has the token to read")
    usage.add_argument(
        "--tls-ca",
        metavar="FILE",
        help="who signed the certificate, if not a public authority: "
        "with --tls self-signed, the run's tls-cert.pem",
    )
    for flag, default, about in options:
        usage.add_argument(flag, default=default, type=type(default), help=f"{about} (default: {default})")
    args = usage.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):  # an orderly end: what is open is closed
        signal.signal(number, stop)
    token = os.environ.get(args.token_env, "").strip() if args.token_env else ""
    if args.token_env and not token:
        fail(f"the variable has no token: {args.token_env}", f"export {args.token_env}=TOKEN")
    return Run(args.address, args.run, token, args.tls_ca), args


def stop(number, _):
    raise Stopped(128 + number)


class Names:
    """A tool's names for the run's metrics. What it does not take is written otherwise, no two names alike, and told
    once: a character as `:HEX:`, a part of a path that is empty as `::`, what is too long by its hash."""

    def __init__(self, tool, taken=lambda char: True, reserved=lambda name: False, paths=False, most=None):
        self.tool, self.taken, self.reserved, self.paths, self.most = tool, taken, reserved, paths, most
        self.known = {}

    def __call__(self, name):
        if name not in self.known:
            self.known[name] = self.written(name)
            if self.known[name] != name:
                print(
                    f"note: {self.tool} does not take the name {name!r}: there it is {self.known[name]!r}",
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
    """What came at once."""

    def __init__(self, cursor=0, start_over=False):
        self.cursor = cursor  # where to go on after it
        self.start_over = start_over  # what was given before does not count any more: all that does follows
        self.metrics = []  # events with metrics: seq, time_us, step, metrics.values
        self.others = []  # (kind, event) of all other kinds
        self.end = ""  # why it is the last one: `RUN_FINISHED`, `RUN_CRASHED`

    def facts(self):
        """The last that it says of checkpoints, deliveries and troubles, for tools that keep words beside a run."""
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
                fail(f"cannot read the certificate: {error}", "--tls-ca takes a PEM file")
            channel = grpc.secure_channel(self.address, grpc.ssl_channel_credentials(roots), ALIVE)
        else:
            if token and not is_this_machine(self.address):
                fail(
                    f"a token does not go in the clear beyond this machine: {address}",
                    "give the address as https://…",
                )
            channel = grpc.insecure_channel(self.address, ALIVE)
        self.metadata = [("authorization", f"Bearer {token}")] if token else []
        self.service = services.TrackerServiceStub(channel)
        try:
            answer = self.service.GetRun(pb.GetRunRequest(run=name), metadata=self.metadata, timeout=30)
        except grpc.RpcError as error:
            self.refused(error)
        self.name, self.created_us = answer.run.name, answer.run.created_time_us
        self.id = f"{self.created_us:x}"  # a run that is made anew under an old name is another
        self.config = effective(json.loads(answer.config_json or "{}"))
        self.connected = True  # whether the server is there; a stream that breaks is begun again for a while

    def refused(self, error, kind=SystemExit):
        hints = {
            grpc.StatusCode.UNAUTHENTICATED: "give --token-env NAME, where that variable has the server's token to read",
            grpc.StatusCode.NOT_FOUND: "`host runs list` has the names",
            grpc.StatusCode.INVALID_ARGUMENT: "name the run after the address",
        }
        hint = hints.get(
            error.code(),
            "grpc.addr in a live run's folder has its address; `host serve` shows finished runs, "
            "and this resumes there from its cursor",
        )
        if "CERTIFICATE" in error.details():
            hint = "--tls-ca FILE says who signed it: with --tls self-signed, the run's tls-cert.pem"
        fail(f"{error.details()}: {self.address}", hint, kind)

    def watch(self, after=0, follow=True):
        """The pieces of the stream of events behind the cursor. A connection that breaks is made again; `Lost` is
        raised when that fails for ten seconds."""
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
        """What counts of the run behind the cursor, in batches, until the run ends: what came while the caller was
        busy is one.

        A resume may go back to a checkpoint. What it superseded is left out. If some of it was given already, by this
        call or before the cursor, a batch with `start_over` comes, and then everything that counts from the beginning.
        """
        back = []  # (seq, step) of each resume that went back: events before seq above step do not count
        seen, top = 0, 0  # the last event looked at, and the highest step that counts so far

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

        for piece in self.watch(0, follow=False):  # how often it went back until now
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
    """What went wrong by an event, in a line; nothing if it tells of none."""
    body = getattr(event, kind) if kind else None
    if kind == "warning":
        return body.message
    if kind == "plugin_fault":
        return f"{body.plugin} failed in {body.call}: {body.message}"
    if kind == "checkpoint_failed":
        return f"no checkpoint: {body.reason}"
    if kind == "delivery" and body.state == pb.DELIVERY_STATE_FAILED:
        return f"{body.sink} failed with step {body.checkpoint_step}: {body.detail}"
    return None


def effective(config):
    """A configuration with its lists of plugins as tables, by their ids, and the values that take effect. Of several
    with one id the second is `ID-2`, as in the names of its metrics."""
    found = config.get("record", {}).get("plugin", [])

    def named(tables):
        made, ids = {}, []
        for place, table in enumerate(tables):  # one that was asked for by its path has its id in the record
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
        for table in config["plugin"].values():  # it groups the parameters, and what it gives them counts
            if "weight_decay" in table:
                config["weight_decay"] = table["weight_decay"]
    return config


def flat(config):
    """A configuration as one table: what is inside of a table is behind a dot, and of a plugin as `plugin/hub-git/repo`."""

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
    """Lists of those pieces that came while the caller was busy. A thread reads; the caller's exit ends it."""
    waiting = queue.Queue(most)

    def read():
        try:
            for piece in pieces:
                waiting.put(piece)
            waiting.put(EOFError())
        except BaseException as error:  # the caller's to raise
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
