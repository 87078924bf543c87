"""Makes the calls that a README gives as lines for grpcurl, and sees that each gives something."""

import shlex
import shutil
import subprocess

import grpc
from google.protobuf import descriptor_pool, json_format, message_factory
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from program import fail


def call(channel, pool, method, body, metadata=()):
    """A call as grpcurl makes it, by what the server's reflection says of the method; the answers."""
    service, _, name = method.rpartition("/")
    about = pool.FindServiceByName(service).FindMethodByName(name)
    request, answer = map(message_factory.GetMessageClass, (about.input_type, about.output_type))
    begin = channel.unary_stream if about.server_streaming else channel.unary_unary
    done = begin(f"/{method}", request.SerializeToString, answer.FromString)(
        json_format.Parse(body, request()), metadata=metadata, timeout=60
    )
    return list(done) if about.server_streaming else [done]


def readme(path, address):
    """Each line of the README does something: by grpcurl itself, where there is one, else by the server's reflection."""
    text = path.read_text().replace('"demo"', '"wild"')
    lines = [
        shlex.split(line.replace("$ADDRESS", address))
        for line in text.splitlines()
        if line.startswith("grpcurl ")
    ]
    if len(lines) < 8:
        fail(f"the README has {len(lines)} lines for grpcurl")
    program = shutil.which("grpcurl")
    with grpc.insecure_channel(address) as channel:
        pool = descriptor_pool.DescriptorPool(database := ProtoReflectionDescriptorDatabase(channel))
        for words in lines:
            if program:
                done = subprocess.run([program, *words[1:]], capture_output=True, text=True, timeout=60)
                if done.returncode != 0 or not done.stdout:
                    fail(f"{shlex.join(words)}: {done.stderr}")
                continue
            body = words.pop(words.index("-d") + 1) if "-d" in words else "{}"
            words = [word for word in words[1:] if word not in ("-d", "-plaintext")]
            if words[0] != address:
                fail(f"the README has a line of another form: {words}")
            match words[1:]:
                case ["list"]:
                    good = {"tracker.v1.TrackerService", "grpc.health.v1.Health"} <= set(
                        database.get_services()
                    )
                case ["describe", name]:
                    good = pool.FindServiceByName(name).methods
                case [method]:
                    good = call(channel, pool, method, body)
            if not good:
                fail(f"the README's {shlex.join(words)} gives nothing")
    print(f"{program or 'reflection'}: the README's {len(lines)} lines for grpcurl")
