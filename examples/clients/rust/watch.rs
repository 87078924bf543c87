//! Prints the events of a run, live or finished: `cargo run -p host-proto --example watch -- ADDRESS [RUN]`.
//!
//! Your own client needs the crates tonic, prost and tokio, and the `.proto` files or `host-proto`.
//! It should reopen a broken stream with the last cursor; this example ends with an error instead.

use std::process::ExitCode;

use host_proto::tracker::v1::event::Body;
use host_proto::tracker::v1::tracker_service_client::TrackerServiceClient;
use host_proto::tracker::v1::{WatchEventsRequest, WatchEventsResponse};
use tonic::transport::Channel;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let Err(error) = watch().await else {
        return ExitCode::SUCCESS;
    };
    match error.downcast_ref::<tonic::Status>() {
        Some(status) => eprintln!("error: {}", status.message()),
        None => eprintln!("error: {error}"),
    }
    ExitCode::FAILURE
}

async fn watch() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let address = args.next().ok_or("usage: watch ADDRESS [RUN]")?;
    let request = WatchEventsRequest {
        run: args.next().unwrap_or_default(),
        after_seq: 0,
        follow: true,
    };
    let channel = Channel::from_shared(format!("http://{address}"))?
        .connect()
        .await?;
    let mut pieces = TrackerServiceClient::new(channel)
        .watch_events(request)
        .await?
        .into_inner();
    while let Some(piece) = pieces.message().await? {
        print(&piece);
    }
    Ok(())
}

fn print(piece: &WatchEventsResponse) {
    for event in &piece.events {
        print!("{:6}  step {:6}", event.seq, event.step);
        match &event.body {
            Some(Body::Metrics(metrics)) => {
                for value in &metrics.values {
                    print!("  {} {:.6}", value.name, value.value);
                }
                println!();
            }
            Some(other) => println!("  {other:?}"),
            None => println!("  an event of a newer kind"),
        }
    }
    if let Some(end) = &piece.end {
        println!("{:?} at cursor {}", end.reason(), piece.cursor);
    }
}
