//! Exercises the Veilid transport by hand, one node per process:
//!
//! ```text
//! veilid_probe serve DIR [NETWORK.toml]
//! veilid_probe load  DIR ADDRESS BYTES WINDOW CALLS [NETWORK.toml]
//! veilid_probe watch DIR ADDRESS SECONDS [NETWORK.toml]
//! ```
//!
//! `serve` answers each request of four bytes with as many bytes as they say. `load` measures throughput, `watch`
//! calls four times a second and prints each change between answered and unanswered.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use ddcp::{
    config::NetworkConfig,
    transport::{
        BoxFuture, Handler, Peer,
        veilid::{Node, NodeOptions, VeilidPeer},
    },
};
use tokio::sync::watch;

type Outcome<T = ()> = Result<T, Box<dyn std::error::Error>>;

#[tokio::main]
async fn main() -> Outcome {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["serve", dir, ref rest @ ..] => serve(start(dir, rest).await?).await,
        ["load", dir, address, bytes, window, calls, ref rest @ ..] => {
            let node = start(dir, rest).await?;
            let outcome = load(&node, address, bytes.parse()?, window.parse()?, calls.parse()?).await;
            node.shutdown().await;
            outcome
        }
        ["watch", dir, address, seconds, ref rest @ ..] => {
            let node = start(dir, rest).await?;
            let outcome = observe(&node, address, Duration::from_secs(seconds.parse()?)).await;
            node.shutdown().await;
            outcome
        }
        _ => Err("see the head of this program's source for its arguments".into()),
    }
}

async fn start(dir: &str, rest: &[&str]) -> Outcome<Node> {
    let network = match rest.first() {
        Some(file) => Some(toml::from_str::<NetworkConfig>(&std::fs::read_to_string(file)?)?),
        None => None,
    };
    Ok(Node::start(NodeOptions { dir: PathBuf::from(dir), network }).await?)
}

/// Answers with as many bytes as the request says.
struct Bytes;

impl Handler for Bytes {
    fn handle(&self, request: Vec<u8>) -> BoxFuture<'_, Vec<u8>> {
        Box::pin(async move {
            let length = <[u8; 4]>::try_from(request.as_slice()).map_or(0, u32::from_be_bytes);
            vec![7; length as usize]
        })
    }

    fn busy(&self) -> Vec<u8> {
        b"busy".to_vec()
    }
}

async fn serve(node: Node) -> Outcome {
    let (_announce, announcement) = watch::channel(b"probe".to_vec());
    println!("{}", node.address().await?);
    node.serve(Arc::new(Bytes), announcement).await?;
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        outcome = tokio::signal::ctrl_c() => outcome?,
        _ = terminate.recv() => {}
    }
    let started = Instant::now();
    node.shutdown().await;
    eprintln!("shut down in {:?}", started.elapsed());
    Ok(())
}

async fn connect(node: &Node, address: &str) -> Outcome<VeilidPeer> {
    let started = Instant::now();
    node.wait_ready(Duration::from_secs(60)).await?;
    println!("ready after {:?}", started.elapsed());
    let started = Instant::now();
    let peer = match node.connect(&address.parse()?).await {
        Ok(peer) => peer,
        Err(error) => {
            println!("connect failed after {:?}: {error} ({error:?})", started.elapsed());
            return Err(error.into());
        }
    };
    println!("connected in {:?}, announcement {:?}", started.elapsed(), String::from_utf8_lossy(&peer.announcement()));
    Ok(peer)
}

async fn load(node: &Node, address: &str, bytes: u32, window: usize, calls: usize) -> Outcome {
    let peer = connect(node, address).await?;
    let started = Instant::now();
    let mut times = Vec::with_capacity(calls);
    let mut busy = 0;
    let mut running = tokio::task::JoinSet::new();
    for call in 0..calls + window {
        if call >= window {
            let Some(done) = running.join_next().await else { break };
            let (time, length): (Duration, usize) = done??;
            if length == bytes as usize { times.push(time) } else { busy += 1 }
        }
        if call < calls {
            let peer = peer.clone();
            running.spawn(async move {
                let started = Instant::now();
                let answer = peer.call(bytes.to_be_bytes().to_vec()).await?;
                Ok::<_, ddcp::transport::TransportError>((started.elapsed(), answer.len()))
            });
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    times.sort_unstable();
    let (Some(worst), Some(median)) = (times.last(), times.get(times.len() / 2)) else {
        return Err(format!("no answer but `busy` ({busy})").into());
    };
    let megabytes = times.len() as f64 * f64::from(bytes) / 1e6;
    println!(
        "{} answers of {bytes} bytes, {window} in flight: {:.1} MB/s, median {median:?}, worst {worst:?}, busy {busy}",
        times.len(),
        megabytes / seconds
    );
    Ok(())
}

async fn observe(node: &Node, address: &str, duration: Duration) -> Outcome {
    let peer = connect(node, address).await?;
    let started = Instant::now();
    let mut was_ok = None;
    while started.elapsed() < duration {
        let call = Instant::now();
        let outcome = peer.call(100u32.to_be_bytes().to_vec()).await;
        let is_slow = call.elapsed() > Duration::from_millis(700);
        if was_ok != Some(outcome.is_ok()) || is_slow {
            println!("{:7.1} s: {} after {:?}", started.elapsed().as_secs_f64(), describe(&outcome), call.elapsed());
        }
        was_ok = Some(outcome.is_ok());
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    Ok(())
}

fn describe(outcome: &Result<Vec<u8>, ddcp::transport::TransportError>) -> String {
    match outcome {
        Ok(answer) => format!("answered ({} bytes)", answer.len()),
        Err(error) => format!("failed: {error}"),
    }
}
