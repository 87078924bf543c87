//! Calls every method of every service with random bytes and with random messages. No call may cause a panic,
//! or return a status that the `.proto` files do not document.

use host_proto::FILE_DESCRIPTOR_SET;
use host_serve::{Access, Server, Token};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use prost::Message as _;
use prost::bytes::{Buf, BufMut};
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, FileDescriptorSet};
use tokio::runtime::Builder;
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use crate::run::{NAME, Run};

/// Number of messages for each method.
const CASES: u32 = 48;
/// Number of messages that are read from a stream.
const PIECES: usize = 3;

/// A codec that passes encoded messages through unchanged.
#[derive(Clone, Copy, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        let mut item = vec![0; buffer.remaining()];
        buffer.copy_to_slice(&mut item);
        Ok(Some(item))
    }
}

struct Method {
    path: String,
    request: DescriptorProto,
    streams: bool,
}

fn descriptors() -> FileDescriptorSet {
    FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).expect("descriptors")
}

fn message(set: &FileDescriptorSet, name: &str) -> DescriptorProto {
    let found = set.file.iter().find_map(|file| {
        let short = name.strip_prefix(&format!(".{}.", file.package()))?;
        let message = file.message_type.iter().find(|m| m.name() == short)?;
        Some(message.clone())
    });
    // A nested message type, or a type from a library, is not found here and gets no fields.
    found.unwrap_or_default()
}

fn methods(set: &FileDescriptorSet) -> Vec<Method> {
    let mut methods = Vec::new();
    for file in &set.file {
        for service in &file.service {
            for method in &service.method {
                methods.push(Method {
                    path: format!("/{}.{}/{}", file.package(), service.name(), method.name()),
                    request: message(set, method.input_type()),
                    streams: method.server_streaming(),
                });
            }
        }
    }
    methods
}

/// Generates well-formed messages of this type with random values.
fn encoded(
    set: &FileDescriptorSet,
    message: &DescriptorProto,
    depth: u32,
) -> BoxedStrategy<Vec<u8>> {
    let mut fields = Just(Vec::new()).boxed();
    for field in &message.field {
        let number = u64::try_from(field.number()).expect("a number");
        let one = match field.r#type() {
            Type::Double | Type::Fixed64 | Type::Sfixed64 => any::<[u8; 8]>()
                .prop_map(move |bytes| [varint(number << 3 | 1), bytes.to_vec()].concat())
                .boxed(),
            Type::Float | Type::Fixed32 | Type::Sfixed32 => any::<[u8; 4]>()
                .prop_map(move |bytes| [varint(number << 3 | 5), bytes.to_vec()].concat())
                .boxed(),
            Type::String | Type::Bytes => text()
                .prop_map(move |text| delimited(number, text.into_bytes()))
                .boxed(),
            Type::Message if depth > 0 => {
                let inner = self::message(set, field.type_name());
                encoded(set, &inner, depth - 1)
                    .prop_map(move |inner| delimited(number, inner))
                    .boxed()
            }
            Type::Message | Type::Group => Just(Vec::new()).boxed(),
            _ => prop_oneof![0..4_u64, any::<u64>()]
                .prop_map(move |value| [varint(number << 3), varint(value)].concat())
                .boxed(),
        };
        let most = if field.label() == Label::Repeated {
            4
        } else {
            2
        };
        let some = prop::collection::vec(one, 0..most).prop_map(|many| many.concat());
        fields = (fields, some)
            .prop_map(|(before, some)| [before, some].concat())
            .boxed();
    }
    fields
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        Just(NAME.to_owned()),
        Just("loss/train".to_owned()),
        Just("../../etc/passwd".to_owned()),
        Just("scalars".to_owned()),
        ".{0,80}",
        Just("x".repeat(2000)),
    ]
}

fn delimited(number: u64, bytes: Vec<u8>) -> Vec<u8> {
    [varint(number << 3 | 2), varint(bytes.len() as u64), bytes].concat()
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    bytes.push(value.to_le_bytes()[0]);
    bytes
}

async fn send(channel: &Channel, method: &Method, body: Vec<u8>) -> Result<(), Status> {
    let mut client = Grpc::new(channel.clone());
    client
        .ready()
        .await
        .map_err(|e| Status::unavailable(e.to_string()))?;
    let mut request = Request::new(body);
    let token = "Bearer controlling".parse().expect("a header");
    request.metadata_mut().insert("authorization", token);
    let path = method.path.parse().expect("a path");
    if !method.streams {
        return client.unary(request, path, Raw).await.map(drop);
    }
    // The stream of a live run stays open, so do not wait for its end.
    let response = client.server_streaming(request, path, Raw).await?;
    let mut pieces = response.into_inner();
    let wait = std::time::Duration::from_millis(20);
    for _ in 0..PIECES {
        match tokio::time::timeout(wait, pieces.message()).await {
            Ok(Ok(Some(_))) => {}
            Ok(Ok(None)) | Err(_) => break,
            Ok(Err(status)) => return Err(status),
        }
    }
    Ok(())
}

/// Whether the `.proto` files document the status. INTERNAL is allowed for bytes that are not a valid
/// message.
fn is_documented(status: &Status) -> bool {
    match status.code() {
        Code::InvalidArgument
        | Code::NotFound
        | Code::OutOfRange
        | Code::FailedPrecondition
        | Code::ResourceExhausted
        | Code::Unimplemented => true,
        Code::Internal => status.message().starts_with("failed to decode"),
        _ => false,
    }
}

#[test]
fn no_message_causes_a_panic_or_an_undocumented_status() {
    let mut run = Run::start();
    run.train(1..50);
    let server = Server::new("127.0.0.1:0".parse().expect("an address"), run.live());
    let access = Access {
        read: None,
        control: Some(Token::new("controlling")),
    };
    let serving = server.access(access).start().expect("a server");
    run.play_loop();
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let endpoint: Endpoint = format!("http://{}", serving.addr())
        .parse()
        .expect("an address");
    let channel = runtime.block_on(endpoint.connect()).expect("connected");
    let set = descriptors();
    let methods = methods(&set);
    assert!(methods.len() >= 20, "{}", methods.len());
    for method in &methods {
        let body = prop_oneof![
            prop::collection::vec(any::<u8>(), 0..256),
            encoded(&set, &method.request, 3),
            Just(vec![0; 200 << 10]),
        ];
        let config = Config {
            cases: CASES,
            failure_persistence: None,
            ..Config::default()
        };
        TestRunner::new(config)
            .run(&body, |body| {
                let sent = runtime.block_on(send(&channel, method, body));
                if let Err(status) = &sent {
                    prop_assert!(is_documented(status), "{}: {status:?}", method.path);
                }
                Ok(())
            })
            .unwrap_or_else(|found| panic!("{}: {found}", method.path));
    }
    drop((channel, runtime, serving));
    run.finish();
}
