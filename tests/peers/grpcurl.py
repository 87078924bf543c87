"""Replaces grpcurl where it is not installed: `grpcurl.py -plaintext [-H HEADER] [-d JSON] ADDRESS CALL`. It finds the
methods by the server's reflection, as grpcurl does. It reads a stream for at most two seconds."""

import argparse
import sys

import grpc
from google.protobuf import descriptor_pool, json_format, message_factory
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

STREAM_SECS = 2


def call(channel, pool, method, body, metadata=()):
    """Makes a call. Yields the responses."""
    service, _, name = method.rpartition("/")
    about = pool.FindServiceByName(service).FindMethodByName(name)
    request, answer = map(message_factory.GetMessageClass, (about.input_type, about.output_type))
    begin = channel.unary_stream if about.server_streaming else channel.unary_unary
    timeout = STREAM_SECS if about.server_streaming else 60
    done = begin(f"/{method}", request.SerializeToString, answer.FromString)(
        json_format.Parse(body, request()), metadata=metadata, timeout=timeout
    )
    if not about.server_streaming:
        yield done
        return
    try:
        yield from done
    except grpc.RpcError as error:
        if error.code() != grpc.StatusCode.DEADLINE_EXCEEDED:
            raise


def answers(arguments):
    """Yields the texts that grpcurl would print."""
    with grpc.insecure_channel(arguments.address) as channel:
        pool = descriptor_pool.DescriptorPool(database := ProtoReflectionDescriptorDatabase(channel))
        match arguments.call:
            case ["list"]:
                yield from database.get_services()
            case ["describe", name]:
                yield from (method.full_name for method in pool.FindServiceByName(name).methods)
            case [method]:
                headers = [tuple(header.split(": ", 1)) for header in arguments.header]
                for answer in call(channel, pool, method, arguments.data, headers):
                    yield json_format.MessageToJson(answer)


def main():
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("-plaintext", action="store_true", required=True)
    parser.add_argument("-H", dest="header", action="append", default=[])
    parser.add_argument("-d", dest="data", default="{}")
    parser.add_argument("address")
    parser.add_argument("call", nargs="+")
    for answer in answers(parser.parse_args()):
        print(answer)


if __name__ == "__main__":
    sys.exit(main())
