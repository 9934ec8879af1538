//! The same controls as the library's, over HTTP below `/_emulator/`, for people and for other languages.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value as Json, json};
use tokio::time::{Duration, Instant};

use crate::faults::Fault;
use crate::secrets::{CURRENT, Value, Wanted};
use crate::secrets_manager::value_json;
use crate::server::{Phase, Shared};

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct Put {
    secret_string: Option<String>,
    secret_binary: Option<String>,
    version_stages: Option<Vec<String>>,
}

/// How long the port stays down if not told.
const DOWN_SECONDS: u64 = 5;

pub(crate) fn answer(
    shared: &Shared,
    method: &Method,
    path: &str,
    query: Option<&str>,
    body: &[u8],
) -> (StatusCode, Option<Json>) {
    let done = (StatusCode::NO_CONTENT, None);
    let found = |json: Json| (StatusCode::OK, Some(json));
    let absent = (StatusCode::NOT_FOUND, Some(json!({ "error": "no such thing" })));
    let number = |key: &str| {
        let mut fields = form_urlencoded::parse(query.unwrap_or_default().as_bytes());
        fields.find(|(name, _)| name == key).and_then(|(_, value): (_, Cow<'_, str>)| value.parse::<u64>().ok())
    };
    let now_ms = shared.now_ms();
    let mut world = shared.world();
    match (method.as_str(), path.split_once('/').unwrap_or((path, ""))) {
        ("GET", ("requests", "")) => found(json!(world.record.all())),
        ("DELETE", ("requests", "")) => {
            world.record.clear();
            done
        }
        ("PUT", ("recording", "")) => match serde_json::from_slice(body) {
            Ok(on) => {
                world.record.set_on(on);
                done
            }
            Err(_) => refused("the body is neither true nor false"),
        },
        ("PUT", ("slow-replication", "")) => match serde_json::from_slice(body) {
            Ok(describes) => {
                world.slow_replication = describes;
                done
            }
            Err(_) => refused("the body is no number"),
        },
        ("PUT", ("owner" | "primary-region", name)) => match serde_json::from_slice::<Option<String>>(body) {
            Ok(text) => {
                let is_owner = path.starts_with("owner/");
                let changed = world.home(now_ms).change(name, |secret| {
                    *(if is_owner { &mut secret.owner } else { &mut secret.primary_region }) = text;
                });
                if changed { done } else { absent }
            }
            Err(_) => refused("the body is neither a JSON text nor null"),
        },
        ("GET", ("faults", "")) => {
            let faults = world.faults.all().map(|(id, fault)| json!({ "id": id, "fault": fault }));
            found(faults.collect())
        }
        ("POST", ("faults", "")) => match serde_json::from_slice::<Fault>(body) {
            Ok(fault) => found(json!({ "id": world.faults.set(fault) })),
            Err(error) => refused(&error.to_string()),
        },
        ("DELETE", ("faults", "")) => {
            world.faults.clear();
            done
        }
        ("GET", ("secrets", "")) => found(world.home(now_ms).names().collect()),
        ("GET", ("secrets", name)) => match world.home(now_ms).read(name, Wanted::default()) {
            Ok(secret) => found(value_json(&secret)),
            Err(_) => absent,
        },
        ("PUT", ("secrets", name)) => match put(body) {
            Ok((value, stages)) => found(json!({ "VersionId": world.home(now_ms).set(name, value, &stages, now_ms) })),
            Err(why) => refused(why),
        },
        ("DELETE", ("secrets", name)) => {
            if world.home(now_ms).remove(name) {
                done
            } else {
                absent
            }
        }
        ("POST", ("schedule-deletion", name)) => {
            if world.home(now_ms).schedule(name, now_ms) {
                done
            } else {
                absent
            }
        }
        ("POST", ("restore", name)) => {
            if world.home(now_ms).restore(name).is_ok() {
                done
            } else {
                absent
            }
        }
        ("POST", ("rollback", name)) => {
            if world.home(now_ms).roll_back(name) {
                done
            } else {
                absent
            }
        }
        ("POST", ("expire-sessions", "")) => {
            world.access.expire_sessions(now_ms);
            done
        }
        ("POST", ("down", "")) => {
            let seconds = number("seconds").unwrap_or(DOWN_SECONDS);
            shared.set_phase(Phase::Down(Some(Instant::now() + Duration::from_secs(seconds))));
            done
        }
        _ => absent,
    }
}

fn refused(why: &str) -> (StatusCode, Option<Json>) {
    (StatusCode::BAD_REQUEST, Some(json!({ "error": why })))
}

fn put(body: &[u8]) -> Result<(Value, Vec<String>), &'static str> {
    let put: Put = serde_json::from_slice(body).map_err(|_| "the body is no {\"SecretString\": \"…\"}")?;
    let Put { secret_string, secret_binary, version_stages } = put;
    let value = match (secret_string, secret_binary) {
        (Some(text), None) => Value::Text(text),
        (None, Some(base64)) => Value::Binary(STANDARD.decode(base64).map_err(|_| "SecretBinary is not base64")?),
        _ => return Err("exactly one of SecretString and SecretBinary is wanted"),
    };
    Ok((value, version_stages.unwrap_or_else(|| vec![CURRENT.to_owned()])))
}
