//! JSON-RPC 2.0: what a line asks for, and what answers look like.

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::{ErrorKind, Failure};

/// The method of the notifications that say how far a command is.
pub(super) const PROGRESS: &str = "progress";
/// The method of the notifications of events.
pub(super) const EVENT: &str = "event";

/// The line is no JSON.
pub(super) const PARSE_ERROR: i32 = -32700;
/// It is no request.
pub(super) const INVALID_REQUEST: i32 = -32600;
/// There is no such method.
pub(super) const METHOD_NOT_FOUND: i32 = -32601;
/// The method does not take these params.
pub(super) const INVALID_PARAMS: i32 = -32602;
/// A fault of the program.
pub(super) const INTERNAL_ERROR: i32 = -32603;
/// A command failed.
pub(super) const COMMAND_FAILED: i32 = -32000;
/// The client speaks another version of the protocol.
pub(super) const OTHER_VERSION: i32 = -32001;
/// The client has not shown the token.
pub(super) const NOT_AUTHORISED: i32 = -32002;
/// There are too many clients already.
pub(super) const TOO_MANY_CLIENTS: i32 = -32003;

/// What a line asks for.
#[derive(Debug)]
pub(super) struct Request {
    /// `None` in a notification, which is not answered.
    pub(super) id: Option<Value>,
    pub(super) method: String,
    pub(super) params: Map<String, Value>,
}

/// Why a request is not carried out, or that it failed.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) code: i32,
    pub(super) failure: Failure,
}

impl Refusal {
    /// A request that is wrong in itself.
    pub(super) fn wrong(code: i32, message: impl Into<String>) -> Self {
        Self { code, failure: Failure { kind: ErrorKind::Usage, message: message.into(), hint: None } }
    }

    pub(super) fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.failure.hint = Some(hint.into());
        self
    }

    /// The line that answers the request `id` so.
    pub(super) fn answer(&self, id: &Value) -> Value {
        let Self { code, failure } = self;
        json!({"jsonrpc": "2.0", "id": id, "error": {"code": code, "message": failure.message, "data": failure}})
    }
}

/// A command that failed.
impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        let code = if failure.kind == ErrorKind::Internal { INTERNAL_ERROR } else { COMMAND_FAILED };
        Self { code, failure }
    }
}

/// The line that answers the request `id` with `result`.
pub(super) fn answer(id: &Value, result: &Value) -> Value {
    json!({"jsonrpc": "2.0", "id": id, "result": result})
}

/// A line that answers nothing.
pub(super) fn notification(method: &str, params: impl Serialize) -> Value {
    json!({"jsonrpc": "2.0", "method": method, "params": params})
}

/// What `line` asks for; if that cannot be told, the id to answer to, as far as it is known, and why.
pub(super) fn parse(line: &[u8]) -> Result<Request, (Value, Refusal)> {
    let value: Value = serde_json::from_slice(line)
        .map_err(|error| (Value::Null, Refusal::wrong(PARSE_ERROR, format!("the line is no JSON: {error}"))))?;
    let invalid = |id: &Value, why: &str| (id.clone(), Refusal::wrong(INVALID_REQUEST, why));
    let mut request = match value {
        Value::Object(request) => request,
        Value::Array(_) => return Err(invalid(&Value::Null, "batches are not taken: send one request a line")),
        _ => return Err(invalid(&Value::Null, "a request is an object")),
    };
    let id = request.remove("id");
    if id.as_ref().is_some_and(|id| !(id.is_string() || id.is_number() || id.is_null())) {
        return Err(invalid(&Value::Null, "the id is neither a text nor a number"));
    }
    let shown = id.clone().unwrap_or_default();
    if request.get("jsonrpc") != Some(&Value::from("2.0")) {
        return Err(invalid(&shown, "it does not say \"jsonrpc\": \"2.0\""));
    }
    let Some(Value::String(method)) = request.remove("method") else {
        return Err(invalid(&shown, "there is no method"));
    };
    match request.remove("params") {
        None => Ok(Request { id, method, params: Map::new() }),
        Some(Value::Object(params)) => Ok(Request { id, method, params }),
        Some(_) => Err((shown, Refusal::wrong(INVALID_PARAMS, "params are given by name, in an object"))),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn requests_are_told_from_what_is_none() {
        let request = parse(br#"{"jsonrpc":"2.0","id":"a","method":"fetch","params":{"remote":null}}"#).unwrap();
        assert_eq!((request.id, request.method.as_str()), (Some("a".into()), "fetch"));
        assert_eq!(request.params["remote"], Value::Null);
        let notification = parse(br#"{"jsonrpc":"2.0","method":"stop"}"#).unwrap();
        assert_eq!((notification.id, notification.params.len()), (None, 0));
        for (line, code, id) in [
            ("{", PARSE_ERROR, Value::Null),
            ("\u{1}", PARSE_ERROR, Value::Null),
            ("7", INVALID_REQUEST, Value::Null),
            ("[]", INVALID_REQUEST, Value::Null),
            (r#"{"id":1,"method":"status"}"#, INVALID_REQUEST, 1.into()),
            (r#"{"jsonrpc":"1.0","id":1,"method":"status"}"#, INVALID_REQUEST, 1.into()),
            (r#"{"jsonrpc":"2.0","id":[1],"method":"status"}"#, INVALID_REQUEST, Value::Null),
            (r#"{"jsonrpc":"2.0","id":1,"method":7}"#, INVALID_REQUEST, 1.into()),
            (r#"{"jsonrpc":"2.0","id":1,"method":"status","params":["a"]}"#, INVALID_PARAMS, 1.into()),
        ] {
            let (told, refusal) = parse(line.as_bytes()).unwrap_err();
            assert_eq!((refusal.code, told), (code, id), "{line}");
        }
    }

    proptest! {
        #[test]
        fn any_line_is_a_request_or_refused(line in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Err((id, refusal)) = parse(&line) {
                let answer = refusal.answer(&id);
                prop_assert!(answer["error"]["code"].as_i64() < Some(-32000));
            }
        }
    }
}
