//! An infrastructure node: Veilid in a machine's namespace.

use std::{path::PathBuf, process, sync::Arc, thread, time::Duration};

use serde::{Deserialize, Serialize};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep},
};
use veilid_core::{
    CRYPTO_KIND_VLD0, Crypto, DHTSchema, KeyPair, PublicKeyGroup, RecordKey, RoutingContext, SecretKeyGroup, VeilidAPI,
    VeilidAPIError, VeilidConfig,
};

use crate::{
    Error,
    machine::{Event, Order, next_order, report},
};

/// The port Veilid listens on unless told otherwise.
const PORT: u16 = 5150;
/// Nodes are ready 3 to 6 s after the start, rarely 13 s.
const READY_LIMIT: Duration = Duration::from_secs(45);
/// Until a write or read must have succeeded, tries included.
const ORDER_LIMIT: Duration = Duration::from_secs(20);

/// How a node joins the network.
#[derive(Serialize, Deserialize)]
pub(crate) struct Setup {
    /// Where the node keeps its stores.
    pub(crate) dir: PathBuf,
    /// The network's password.
    pub(crate) key: String,
    /// The bootstrap record of the first node; none for the first node itself.
    pub(crate) bootstrap: Option<String>,
    /// The key pair the node's id comes from; made by the node where none is given.
    pub(crate) identity: Option<KeyPair>,
}

/// An identity for the first node, so that its bootstrap record is known beforehand.
pub(crate) fn new_identity() -> Result<KeyPair, Error> {
    Ok(Crypto::generate_keypair(CRYPTO_KIND_VLD0)?)
}

/// The record by which others find the node with this identity.
pub(crate) fn bootstrap_record(identity: &KeyPair, address: std::net::Ipv4Addr) -> String {
    format!("0|0|{}|{address}|T{PORT},U{PORT}", identity.key())
}

/// Runs a node; returns when stdin ends.
pub(crate) fn run(setup: Setup) -> Result<(), Error> {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "warn".into()))
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(Error::file("start threads for", setup.dir.clone()))?;
    runtime.block_on(serve(setup))
}

async fn serve(setup: Setup) -> Result<(), Error> {
    let mut orders = orders();
    // Nothing is done with the updates, so nothing can block Veilid.
    let api = veilid_core::api_startup(Arc::new(|_| {}), config(setup)).await?;
    api.attach().await?;
    let _ = api.wait_for_attachment_condition(None, Some(READY_LIMIT)).await?;
    report(&Event::Ready)?;
    while let Some(order) = orders.recv().await {
        let event = obey(&api, order).await.unwrap_or_else(|error| Event::Failed { message: error.to_string() });
        report(&event)?;
    }
    Ok(())
}

/// The orders from stdin. Ends the process with them, at once and whatever it is doing: what a
/// node stores need not survive the network.
fn orders() -> mpsc::Receiver<Order> {
    let (sender, receiver) = mpsc::channel(1);
    thread::spawn(move || {
        while let Ok(Some(order)) = next_order() {
            if sender.blocking_send(order).is_err() {
                break;
            }
        }
        process::exit(0);
    });
    receiver
}

fn config(setup: Setup) -> VeilidConfig {
    let dir = setup.dir.to_string_lossy();
    let mut config = VeilidConfig::new("testnet", "", "", Some(&dir), Some(&dir));
    // There is no keyring service, and nothing to keep secret.
    config.protected_store.allow_insecure_fallback = true;
    config.protected_store.always_use_insecure_storage = true;
    let network = &mut config.network;
    network.network_key_password = Some(setup.key);
    network.upnp = false;
    // Finding out an address takes more peers than a small network has.
    network.detect_address_changes = Some(false);
    let table = &mut network.routing_table;
    table.bootstrap.clear();
    table.bootstrap_keys.clear();
    table.bootstrap_records = setup.bootstrap.into_iter().collect();
    if let Some(identity) = setup.identity {
        let (public, secret) = identity.into_split();
        table.public_keys = PublicKeyGroup::from(public);
        table.secret_keys = SecretKeyGroup::from(secret);
    }
    config
}

async fn obey(api: &VeilidAPI, order: Order) -> Result<Event, VeilidAPIError> {
    let context = api.routing_context()?;
    match order {
        Order::Start { .. } => Err(VeilidAPIError::generic("already started")),
        Order::Write { value } => patiently(async || write(&context, &value).await).await,
        Order::Read { key } => {
            let key: RecordKey = key.parse()?;
            patiently(async || read(&context, &key).await).await
        }
    }
}

/// Tries until it succeeds or the time is up: a young network often says "try again".
async fn patiently(attempt: impl AsyncFn() -> Result<Event, VeilidAPIError>) -> Result<Event, VeilidAPIError> {
    let deadline = Instant::now() + ORDER_LIMIT;
    loop {
        match attempt().await {
            Err(_) if Instant::now() < deadline => sleep(Duration::from_millis(200)).await,
            result => return result,
        }
    }
}

async fn write(context: &RoutingContext, value: &str) -> Result<Event, VeilidAPIError> {
    let record = context.create_dht_record(CRYPTO_KIND_VLD0, DHTSchema::dflt(1)?, None).await?;
    let key = record.key();
    context.set_dht_value(key.clone(), 0, value.as_bytes().to_vec(), None).await?;
    // A write succeeds without the network too; only a flush tells that it got there.
    if !context.flush_dht_record(key.clone(), Some(Duration::from_secs(5))).await? {
        return Err(VeilidAPIError::try_again("the written value has not reached the network"));
    }
    Ok(Event::Written { key: key.to_string() })
}

async fn read(context: &RoutingContext, key: &RecordKey) -> Result<Event, VeilidAPIError> {
    let _ = context.open_dht_record(key.clone(), None, None).await?;
    let value = context.get_dht_value(key.clone(), 0, true).await?;
    let value = value.ok_or_else(|| VeilidAPIError::try_again("the record has no value yet"))?;
    Ok(Event::Read { value: String::from_utf8_lossy(value.data()).into_owned() })
}
