//! One Secret: watched by itself, and written by server-side apply.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use futures_util::{Stream, StreamExt as _, pin_mut};
use k8s_openapi::{
    ByteString,
    api::core::v1::Secret as Object,
    apimachinery::pkg::apis::meta::v1::{ManagedFieldsEntry, ObjectMeta},
};
use kube::{
    Api,
    api::{ListParams, Patch, PatchParams, WatchEvent, WatchParams},
};
use tokio::time::timeout;
use zeroize::Zeroize as _;

use super::{
    client::{CALL, Cluster, MANAGER},
    outcome::{Subject, Trouble, TroubleKind, Verb, of_status},
};
use crate::{
    domain::{
        kubernetes::{Field, Live, Manifest, ObjectName},
        value::SecretValue,
    },
    plan::publish::provenance_of,
    render::manifest::applied,
};

/// How long the API server keeps one watch open.
const WATCH_SECONDS: u32 = 290;
/// A watch in which nothing came for so long is a dead one: the API server sends a bookmark about every minute.
const SILENCE: Duration = Duration::from_secs(130);

/// What a watch tells.
#[derive(Debug)]
pub enum Sight {
    /// What there is; none: no such Secret.
    Live(Option<Arc<Live>>),
    /// Each change from here on is told.
    Watching,
}

/// One Secret.
#[derive(Debug, Clone)]
pub struct SecretObject {
    cluster: Cluster,
    name: ObjectName,
}

// === impl SecretObject ===

impl SecretObject {
    /// The Secret of this name in keytide's namespace.
    #[must_use]
    pub fn new(cluster: Cluster, name: ObjectName) -> Self {
        Self { cluster, name }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &ObjectName {
        &self.name
    }

    /// What status and `check` call it by, as `kubectl` does.
    #[must_use]
    pub fn path(&self) -> String {
        self.subject().to_string()
    }

    fn api(&self) -> Api<Object> {
        Api::namespaced(self.cluster.client(), self.cluster.namespace())
    }

    fn subject(&self) -> Subject {
        Subject { group: "", resource: "secrets", name: self.name.to_string() }
    }

    /// What the API server has; none: no such Secret.
    ///
    /// # Errors
    /// If it does not say.
    pub async fn look(&self) -> Result<Option<Live>, Trouble> {
        Ok(self.cluster.look(&self.api(), &self.subject(), CALL).await?.map(live))
    }

    /// Tells what there is, and then each change, until the watch ends. With a field selector, so that RBAC can name the
    /// object.
    ///
    /// # Errors
    /// If it ends other than by its time.
    pub async fn watch(&self, mut tell: impl FnMut(Sight)) -> Result<(), Trouble> {
        let (api, subject) = (self.api(), self.subject());
        let selector = format!("metadata.name={}", self.name);
        let list = ListParams::default().fields(&selector);
        let listed = self.cluster.call(Verb::List, &subject, CALL, api.list(&list)).await?;
        let version = listed.metadata.resource_version.unwrap_or_default();
        tell(Sight::Live(listed.items.into_iter().next().map(live).map(Arc::new)));
        let params = WatchParams::default().fields(&selector).timeout(WATCH_SECONDS);
        let watched = match self.cluster.call(Verb::Watch, &subject, CALL, api.watch(&params, &version)).await {
            Ok(stream) => {
                tell(Sight::Watching);
                follow(stream, &subject, self.cluster.namespace(), tell).await
            }
            Err(trouble) => Err(trouble),
        };
        // What is too old to watch from is listed again.
        watched.or_else(|trouble| if trouble.kind == TroubleKind::Expired { Ok(()) } else { Err(trouble) })
    }

    /// Makes the Secret hold this, if it still is in the state that this was decided on.
    ///
    /// # Errors
    /// If it was not written; nobody knows whether it was where there was no answer.
    pub async fn apply(
        &self,
        manifest: &Manifest,
        resource_version: Option<&str>,
        force: bool,
        limit: Duration,
    ) -> Result<Live, Trouble> {
        let api = self.api();
        let params = PatchParams { force, ..PatchParams::apply(MANAGER) };
        let patch = Patch::Apply(applied(&self.name, manifest, resource_version));
        let call = api.patch(self.name.as_str(), &params, &patch);
        self.cluster.call(Verb::Patch, &self.subject(), limit.min(CALL), call).await.map(live)
    }
}

/// Tells each change until the stream ends, or is silent for too long.
async fn follow(
    stream: impl Stream<Item = Result<WatchEvent<Object>, kube::Error>>,
    subject: &Subject,
    namespace: &str,
    mut tell: impl FnMut(Sight),
) -> Result<(), Trouble> {
    pin_mut!(stream);
    loop {
        match timeout(SILENCE, stream.next()).await {
            Ok(Some(Ok(WatchEvent::Added(object) | WatchEvent::Modified(object)))) => {
                tell(Sight::Live(Some(Arc::new(live(object)))));
            }
            Ok(Some(Ok(WatchEvent::Deleted(_)))) => tell(Sight::Live(None)),
            Ok(Some(Ok(WatchEvent::Bookmark(_)))) => {}
            Ok(Some(Ok(WatchEvent::Error(status)))) => {
                return Err(of_status(&status, Verb::Watch, subject, namespace));
            }
            Ok(Some(Err(error))) => return Err(super::outcome::trouble(&error, Verb::Watch, subject, namespace)),
            Ok(None) => return Ok(()),
            Err(_) => {
                let message = format!("failed to watch {subject}: nothing came for {SILENCE:?}");
                return Err(Trouble::new(TroubleKind::Unavailable, message));
            }
        }
    }
}

/// The object in our words. Values that are not UTF-8 are nobody's whom keytide knows.
fn live(object: Object) -> Live {
    let Object { data, immutable, metadata, type_, string_data: _ } = object;
    let ObjectMeta { annotations, deletion_timestamp, labels, managed_fields, resource_version, uid, .. } = metadata;
    let annotations = annotations.unwrap_or_default();
    let text = |ByteString(bytes): ByteString| match String::from_utf8(bytes) {
        Ok(text) => Some(SecretValue::new(text)),
        Err(error) => {
            error.into_bytes().zeroize();
            None
        }
    };
    Live {
        uid: uid.unwrap_or_default(),
        resource_version: resource_version.unwrap_or_default(),
        kind: type_.unwrap_or_default(),
        immutable: immutable.unwrap_or_default(),
        deleting: deletion_timestamp.is_some(),
        data: data.unwrap_or_default().into_iter().map(|(name, bytes)| (name, text(bytes))).collect(),
        labels: labels.unwrap_or_default(),
        owned: owned(&managed_fields.unwrap_or_default()),
        origin: provenance_of(&annotations),
        annotations,
    }
}

/// The fields that keytide applied (Kubernetes, "Server-Side Apply", `FieldsV1`).
fn owned(entries: &[ManagedFieldsEntry]) -> BTreeSet<Field> {
    let ours = |entry: &&ManagedFieldsEntry| {
        entry.manager.as_deref() == Some(MANAGER) && entry.operation.as_deref() == Some("Apply")
    };
    let mut fields = BTreeSet::new();
    for entry in entries.iter().filter(ours) {
        let Some(tree) = entry.fields_v1.as_ref().map(|fields| &fields.0) else { continue };
        let below = |path: &[&str]| -> Vec<String> {
            let found = path.iter().try_fold(tree, |tree, step| tree.get(*step));
            let names = found.and_then(serde_json::Value::as_object).into_iter().flat_map(|object| object.keys());
            names.filter_map(|name| name.strip_prefix("f:")).map(str::to_owned).collect()
        };
        fields.extend(below(&["f:data"]).into_iter().map(Field::Data));
        fields.extend(below(&["f:metadata", "f:labels"]).into_iter().map(Field::Label));
        fields.extend(below(&["f:metadata", "f:annotations"]).into_iter().map(Field::Annotation));
    }
    fields
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use futures_util::stream;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::FieldsV1;
    use kube::core::watch::{Bookmark, BookmarkMeta};
    use serde_json::json;
    use tokio::time::{Instant, sleep};

    use super::*;

    fn bookmark() -> WatchEvent<Object> {
        let metadata = BookmarkMeta { resource_version: "1".to_owned(), annotations: BTreeMap::new() };
        let types = kube::core::TypeMeta::default();
        WatchEvent::Bookmark(Bookmark { types, metadata })
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_ends_when_it_was_silent_for_too_long_and_not_before() {
        let subject = Subject { group: "", resource: "secrets", name: "a".to_owned() };
        let began = Instant::now();
        // A bookmark a minute, five times; then nothing.
        let bookmarks = stream::iter(0..5).then(|_| async {
            sleep(Duration::from_mins(1)).await;
            Ok(bookmark())
        });
        let trouble = follow(bookmarks.chain(stream::pending()), &subject, "default", drop).await.unwrap_err();
        assert_eq!(trouble.message, "failed to watch secrets/a: nothing came for 130s");
        assert_eq!(began.elapsed(), Duration::from_mins(5) + SILENCE);
    }

    #[test]
    fn only_what_keytide_applied_is_its_own() {
        let entry = |manager: &str, operation: &str, fields| ManagedFieldsEntry {
            manager: Some(manager.to_owned()),
            operation: Some(operation.to_owned()),
            fields_v1: Some(FieldsV1(fields)),
            ..ManagedFieldsEntry::default()
        };
        let entries = [
            entry(
                "keytide",
                "Apply",
                json!({"f:data": {".": {}, "f:tls.crt": {}}, "f:metadata": {"f:annotations": {"f:keytide.dev/content": {}}}, "f:type": {}}),
            ),
            entry("keytide", "Update", json!({"f:data": {"f:B": {}}})),
            entry("kubectl-edit", "Update", json!({"f:data": {"f:C": {}}})),
        ];
        let ours = [Field::Data("tls.crt".to_owned()), Field::Annotation("keytide.dev/content".to_owned())];
        assert_eq!(owned(&entries), BTreeSet::from(ours));
    }

    #[test]
    fn values_that_are_not_utf_8_are_kept_as_none() {
        let data = BTreeMap::from([("A".to_owned(), ByteString(vec![0xff])), ("B".to_owned(), ByteString(vec![b'b']))]);
        let live = live(Object { data: Some(data), ..Object::default() });
        assert!(live.data["A"].is_none() && live.data["B"].is_some());
        assert!(!live.is_ours());
    }
}
