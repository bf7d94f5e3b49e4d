//! What the network itself carries: calls over a private route, each answered with as many bytes as one can
//! hold, and nothing of DDCP in between.

use std::{
    error::Error,
    io::Write,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use data_encoding::BASE64;
use serde::Deserialize;
use tokio::{sync::mpsc, task::JoinSet, time::sleep};
use veilid_core::{
    RouteBlob, RouteId, RoutingContext, Target, VeilidAPI, VeilidAPIError, VeilidAPIResult, VeilidConfig, VeilidUpdate,
};

/// What one answer may carry (`docs/protocol.md`).
const ANSWER: usize = 32 * 1024;
const READY_LIMIT: Duration = Duration::from_secs(45);
const ROUTE_LIMIT: Duration = Duration::from_secs(30);

/// Answers every call with [`ANSWER`] bytes, until it is killed. Prints its route, in base64, when it can be used.
pub(crate) async fn serve(dir: &Path) -> Result<(), Box<dyn Error>> {
    let (calls, mut incoming) = mpsc::unbounded_channel();
    let api = start(dir, move |update| {
        if let VeilidUpdate::AppCall(call) = update {
            let _ = calls.send(call);
        }
    })
    .await?;
    let RouteBlob { blob, .. } = patiently(async || api.new_private_route().await).await?;
    println!("{}", BASE64.encode(&blob));
    std::io::stdout().flush()?;
    while let Some(call) = incoming.recv().await {
        let api = api.clone();
        tokio::spawn(async move { api.app_call_reply(call.id(), vec![7; ANSWER]).await });
    }
    Ok(())
}

/// Calls over the route for `time` with each of `windows` calls in flight; prints a JSON array of bytes a second.
pub(crate) async fn measure(dir: &Path, route: &str, windows: &[usize], time: Duration) -> Result<(), Box<dyn Error>> {
    let api = start(dir, |_| {}).await?;
    let route = api.import_remote_private_route(BASE64.decode(route.as_bytes())?)?;
    let context = api.routing_context()?;
    patiently(async || call(&context, &route).await).await?;
    let mut rates = Vec::new();
    for &window in windows {
        rates.push(rate(&context, &route, window, time).await);
    }
    println!("{}", serde_json::to_string(&rates)?);
    api.shutdown().await;
    Ok(())
}

/// Bytes a second with `window` calls in flight.
async fn rate(context: &RoutingContext, route: &RouteId, window: usize, time: Duration) -> f64 {
    let started = Instant::now();
    let mut callers = JoinSet::new();
    for _ in 0..window {
        let (context, route) = (context.clone(), route.clone());
        callers.spawn(async move {
            let mut bytes = 0;
            while started.elapsed() < time {
                bytes += call(&context, &route).await.unwrap_or(0);
            }
            bytes
        });
    }
    let bytes: usize = callers.join_all().await.into_iter().sum();
    bytes as f64 / started.elapsed().as_secs_f64()
}

async fn call(context: &RoutingContext, route: &RouteId) -> VeilidAPIResult<usize> {
    let answer = Box::pin(context.app_call(Target::RouteId(route.clone()), vec![1; 64])).await?;
    Ok(answer.len())
}

async fn start(
    dir: &Path,
    updates: impl Fn(VeilidUpdate) + Send + Sync + 'static,
) -> Result<VeilidAPI, Box<dyn Error>> {
    let network: Network = toml::from_str(&std::fs::read_to_string(network_file()?)?)?;
    let api = Box::pin(veilid_core::api_startup(Arc::new(updates), config(dir, network))).await?;
    Box::pin(api.attach()).await?;
    let _ = api.wait_for_attachment_condition(None, Some(READY_LIMIT)).await?;
    Ok(api)
}

fn network_file() -> Result<PathBuf, Box<dyn Error>> {
    Ok(std::env::var_os("DDCP_NETWORK").ok_or("DDCP_NETWORK is not set: run by `testnet exec`")?.into())
}

/// What is needed of `network.toml`.
#[derive(Deserialize)]
struct Network {
    key: String,
    bootstrap: Vec<String>,
}

fn config(dir: &Path, network: Network) -> VeilidConfig {
    let dir = dir.to_string_lossy();
    let mut config = VeilidConfig::new("bench-transfer", "", "", Some(&dir), Some(&dir));
    config.protected_store.allow_insecure_fallback = true;
    config.protected_store.always_use_insecure_storage = true;
    config.network.network_key_password = Some(network.key);
    config.network.upnp = false;
    config.network.detect_address_changes = Some(false);
    config.network.routing_table.bootstrap.clear();
    config.network.routing_table.bootstrap_keys.clear();
    config.network.routing_table.bootstrap_records = network.bootstrap;
    config
}

/// Tries until it succeeds: a young network often says "try again".
async fn patiently<T>(attempt: impl AsyncFn() -> Result<T, VeilidAPIError>) -> Result<T, VeilidAPIError> {
    let deadline = Instant::now() + ROUTE_LIMIT;
    loop {
        match attempt().await {
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(_) => sleep(Duration::from_millis(200)).await,
            done => return done,
        }
    }
}
