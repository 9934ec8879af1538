//! That the tests of this binary stand on firm ground: the cluster, the namespaces and the gate do what they promise.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hyper::Request;
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::{Value, json};
use tokio::runtime::Builder;

use crate::{
    api::{Api, Reply, Upstream},
    control_plane::ControlPlane,
    gate::{Fault, Gate},
    namespace::{Namespace, REFUSED},
    stage::KubeStage,
    support::{block, until},
};

/// Longer than what must happen takes.
const PATIENCE: Duration = Duration::from_secs(20);
/// Longer than what must not happen would take.
const MOMENT: Duration = Duration::from_millis(300);

/// A namespace whose service account may write one Secret, and a gate.
struct Scene {
    namespace: Namespace,
    gate: Gate,
    /// The service account through the gate.
    api: Api,
}

impl Scene {
    fn new(cluster: &ControlPlane) -> Self {
        let (namespace, gate) = (Namespace::new(cluster), Gate::new(cluster));
        namespace.role(&role());
        let api = Api::new(Upstream::plain(gate.address()), &namespace.token()).within(PATIENCE);
        Self { namespace, gate, api }
    }

    fn get(&self) -> Result<Reply, String> {
        self.api.ask("GET", &self.path(), None)
    }

    fn apply(&self, value: &str) -> Result<Reply, String> {
        self.api.try_apply(&self.path(), &secret(value), "keytide", true)
    }

    fn path(&self) -> String {
        self.namespace.path("secrets/a")
    }

    fn values(&self) -> Value {
        self.namespace.values("a")
    }
}

/// What keytide needs for one Secret.
fn role() -> Value {
    let watch = json!({"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["a"],
        "verbs": ["get", "list", "watch", "create", "patch"]});
    json!({"metadata": {"name": "keytide"}, "rules": [watch]})
}

/// Not `stringData`, which nobody owns.
fn secret(value: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "a"}, "data": {"A": STANDARD.encode(value)}})
}

#[test]
fn the_api_server_answers_and_applies_on_the_server_side() {
    let cluster = ControlPlane::shared();
    let (namespace, api) = (Namespace::new(cluster), cluster.api());
    let path = namespace.path("secrets/a");
    assert_eq!(api.get("/version").unwrap()["gitVersion"].as_str().map(|version| version.starts_with('v')), Some(true));
    assert_eq!(api.get(&path), None);
    let applied = api.apply(&path, &secret("1"), "keytide", false);
    assert_eq!(applied["metadata"]["managedFields"][0]["manager"], "keytide");
    assert_eq!(namespace.values("a"), json!({"A": "1"}));
    assert_eq!(api.list(&namespace.path("secrets")).len(), 1);
    let version = namespace.resource_version("a");
    assert_eq!(api.apply(&path, &secret("1"), "keytide", false)["metadata"]["resourceVersion"], version);
    api.merge_patch_as(&path, &json!({"data": {"A": "Mg=="}}), "kubectl-edit");
    assert_ne!(namespace.resource_version("a"), version);
    let conflict = api.try_apply(&path, &secret("3"), "keytide", false).unwrap();
    assert_eq!((conflict.status, conflict.reason()), (409, "Conflict"));
    api.apply(&path, &secret("3"), "keytide", true);
    api.merge_patch(&path, &json!({"metadata": {"labels": {"seen": "yes"}}}));
    namespace.until_values("a", &json!({"A": "3"}));
    api.delete(&path);
    assert_eq!((namespace.secret("a"), namespace.lease("a"), namespace.events()), (None, None, Vec::new()));
}

#[test]
fn a_service_account_may_do_what_its_role_allows_as_long_as_it_has_it() {
    let namespace = Namespace::new(ControlPlane::shared());
    let (api, path) = (namespace.api(&namespace.token()), namespace.path("secrets/a"));
    let status = || api.try_apply(&path, &secret("1"), "keytide", false).unwrap().status;
    assert_eq!(status(), 403);
    namespace.role(&role());
    assert_eq!(status(), 201);
    let other = api.try_apply(&namespace.path("secrets/b"), &secret("1"), "keytide", false).unwrap();
    assert_eq!((other.status, other.reason()), (403, "Forbidden"));
    namespace.take_role("keytide");
    assert_eq!(status(), 403);
}

#[test]
fn a_revoked_token_is_refused_and_a_new_one_is_not() {
    let namespace = Namespace::new(ControlPlane::shared());
    let status = |token: &str| namespace.api(token).ask("GET", "/version", None).unwrap().status;
    let old = namespace.token();
    assert_eq!(status(&old), 200);
    namespace.revoke();
    namespace.replace_token(&namespace.new_token());
    assert_eq!((status(&old), status(&namespace.token())), (401, 200));
}

#[test]
fn a_kubeconfig_leads_other_clients_through_the_gate_with_the_token_of_now() {
    let scene = Scene::new(ControlPlane::shared());
    let (namespace, gate) = (&scene.namespace, &scene.gate);
    scene.apply("1").unwrap();
    gate.clear_requests();
    let read = |server: &str| {
        let kubeconfig = Kubeconfig::read_from(namespace.kubeconfig(server)).unwrap();
        Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
            let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
            assert_eq!(config.default_namespace, namespace.name());
            let request = Request::get(scene.path()).body(Vec::new()).unwrap();
            Client::try_from(config).unwrap().request::<Value>(request).await
        })
    };
    assert_eq!(read(&gate.url()).unwrap()["data"]["A"], "MQ==");
    assert_eq!(gate.requests().len(), 1);
    assert_eq!(read(&ControlPlane::shared().url()).unwrap()["data"]["A"], "MQ==");
    namespace.replace_token("not a token");
    assert!(read(&gate.url()).is_err());
    assert_eq!(gate.requests().last().unwrap().status, Some(401));
}

#[test]
fn an_admission_policy_refuses_what_it_names_until_it_is_gone() {
    let cluster = ControlPlane::shared();
    let (namespace, path) = (Namespace::new(cluster), "secrets/a");
    let mut refused = secret("1");
    refused["metadata"]["annotations"] = json!({REFUSED: "yes"});
    let apply = |object: &Value| cluster.api().try_apply(&namespace.path(path), object, "keytide", true).unwrap();
    namespace.refuse_secrets("no such Secrets here");
    let refusal = apply(&refused);
    assert_eq!((refusal.status, refusal.reason()), (422, "Invalid"));
    assert!(refusal.body["message"].as_str().unwrap().contains("no such Secrets here"), "{refusal:?}");
    assert_eq!(apply(&secret("1")).status, 201);
    let other = Namespace::new(cluster);
    cluster.api().apply(&other.path(path), &refused, "keytide", true);
    namespace.allow_secrets();
    assert_eq!(apply(&refused).status, 200);
}

#[test]
fn a_deleted_namespace_stays_and_takes_in_nothing_new() {
    let cluster = ControlPlane::shared();
    let namespace = Namespace::new(cluster);
    cluster.api().apply(&namespace.path("secrets/a"), &secret("1"), "keytide", true);
    namespace.terminate();
    let found = cluster.api().get(&format!("/api/v1/namespaces/{}", namespace.name())).unwrap();
    assert_eq!(found["status"]["phase"], "Terminating");
    let mut other = secret("1");
    other["metadata"]["name"] = json!("b");
    let reply = cluster.api().try_apply(&namespace.path("secrets/b"), &other, "keytide", true).unwrap();
    assert_eq!(reply.status, 403);
    assert_eq!(reply.body["details"]["causes"][0]["reason"], "NamespaceTerminating");
    assert_eq!(namespace.values("a"), json!({"A": "1"}));
}

#[test]
fn the_gate_forwards_and_remembers_each_request() {
    let scene = Scene::new(ControlPlane::shared());
    assert_eq!(scene.apply("1").unwrap().status, 201);
    assert_eq!(scene.get().unwrap().body["data"]["A"], "MQ==");
    let requests = scene.gate.requests();
    let seen: Vec<_> = requests.iter().map(|request| (request.method.as_str(), request.status)).collect();
    assert_eq!(seen, [("PATCH", Some(201)), ("GET", Some(200))]);
    assert_eq!(
        (requests[0].path.as_str(), requests[0].query.as_str()),
        (&*scene.path(), "fieldManager=keytide&force=true")
    );
    assert_eq!(requests[0].content_type, "application/apply-patch+yaml");
    assert_eq!(requests[0].body, secret("1"));
    assert!(requests[0].at <= requests[1].at);
    assert_eq!(scene.gate.count(|request| request.method == "GET"), 1);
    scene.gate.clear_requests();
    assert!(scene.gate.requests().is_empty());
}

#[test]
fn the_gate_answers_in_the_words_of_the_api_server() {
    let scene = Scene::new(ControlPlane::shared());
    for (status, reason) in [
        (409, "Conflict"),
        (410, "Expired"),
        (422, "Invalid"),
        (429, "TooManyRequests"),
        (500, "InternalError"),
        (503, "ServiceUnavailable"),
    ] {
        let fault =
            Fault::answer(status).message("because").method("PATCH").path("/secrets/").content_type("apply-patch");
        let fault = scene.gate.fault(fault.skip(1).times(1));
        assert!(scene.apply("1").unwrap().is_success());
        let reply = scene.apply("2").unwrap();
        assert_eq!((reply.status, reply.reason()), (status, reason));
        assert_eq!((&reply.body["kind"], &reply.body["message"]), (&json!("Status"), &json!("because")));
        assert_eq!(scene.gate.requests().last().unwrap().status, Some(status));
        assert_eq!((scene.values(), scene.gate.struck(fault)), (json!({"A": "1"}), 1));
        assert!(scene.get().unwrap().is_success());
    }
    scene.gate.fault(Fault::answer(429).retry_after(7).times(1));
    let mut stream = TcpStream::connect(scene.gate.address()).unwrap();
    stream.write_all(b"GET /version HTTP/1.1\r\nHost: gate\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert!(text.to_lowercase().contains("retry-after: 7"), "{text}");
    let fault = scene.gate.fault(Fault::answer(500));
    assert_eq!((scene.get().unwrap().status, scene.get().unwrap().status), (500, 500));
    scene.gate.clear_fault(fault);
    assert_eq!(scene.get().unwrap().status, 200);
}

#[test]
fn the_gate_delays_hangs_and_cuts_before_and_after() {
    let mut scene = Scene::new(ControlPlane::shared());
    let began = Instant::now();
    scene.gate.fault(Fault::delay(MOMENT).times(1));
    assert_eq!(scene.apply("1").unwrap().status, 201);
    assert!(began.elapsed() >= MOMENT);
    scene.gate.fault(Fault::cut().times(1));
    assert!(scene.apply("2").is_err());
    assert_eq!(scene.values(), json!({"A": "1"}));
    scene.gate.fault(Fault::cut_after().method("PATCH").times(1));
    assert!(scene.apply("3").is_err());
    assert_eq!((scene.values(), scene.gate.requests().last().unwrap().status), (json!({"A": "3"}), None));
    scene.gate.fault(Fault::hang());
    scene.api = scene.api.within(MOMENT);
    assert!(scene.apply("4").unwrap_err().contains("within"));
    assert_eq!(scene.values(), json!({"A": "3"}));
    scene.gate.clear_faults();
    scene.api = scene.api.within(PATIENCE);
    assert_eq!(scene.apply("5").unwrap().status, 200);
}

#[test]
fn the_gate_refuses_and_cuts_connections() {
    let scene = Scene::new(ControlPlane::shared());
    let watch = scene.api.watch(&watched(&scene));
    scene.gate.set_down(true);
    assert!(watch.ends(PATIENCE));
    assert!(scene.get().unwrap_err().contains("refused"));
    scene.gate.set_down(false);
    assert_eq!(scene.get().unwrap().status, 404);
    let watch = scene.api.watch(&watched(&scene));
    scene.gate.cut_connections();
    assert!(watch.ends(PATIENCE));
    assert_eq!(scene.get().unwrap().status, 404);
}

#[test]
fn the_gate_streams_a_watch_or_lets_it_fall_silent() {
    let scene = Scene::new(ControlPlane::shared());
    let watch = scene.api.watch(&watched(&scene));
    scene.apply("1").unwrap();
    assert_eq!(watch.next(PATIENCE).unwrap()["type"], "ADDED");
    scene.apply("2").unwrap();
    assert_eq!(watch.next(PATIENCE).unwrap()["type"], "MODIFIED");
    let fault = scene.gate.fault(Fault::silence());
    scene.apply("3").unwrap();
    until("the gate to swallow it", || scene.gate.struck(fault) == 1);
    scene.gate.clear_faults();
    scene.apply("4").unwrap();
    assert!(watch.next(MOMENT).is_none() && !watch.ends(MOMENT));
    let another = scene.api.watch(&watched(&scene));
    assert_eq!(another.next(PATIENCE).unwrap()["object"]["data"]["A"], "NA==");
    scene.gate.fault(Fault::watch_error(410).times(1));
    let expired = scene.api.watch(&watched(&scene)).next(PATIENCE).unwrap();
    assert_eq!((&expired["type"], &expired["object"]["code"]), (&json!("ERROR"), &json!(410)));
    assert_eq!(scene.gate.count(|request| request.is_watch() && request.status == Some(200)), 3);
}

/// The one Secret that the role lets one watch.
fn watched(scene: &Scene) -> String {
    scene.namespace.path("secrets?fieldSelector=metadata.name%3Da")
}

#[test]
fn an_api_server_that_was_killed_or_stopped_comes_back_with_its_data() {
    let cluster = ControlPlane::own();
    let scene = Scene::new(&cluster);
    scene.apply("1").unwrap();
    let watch = scene.api.watch(&watched(&scene));
    for stop in [ControlPlane::kill_api_server, ControlPlane::stop_api_server] {
        stop(&cluster);
        assert!(scene.get().is_err());
        assert!(watch.ends(PATIENCE));
        cluster.start_api_server();
        assert_eq!(scene.values(), json!({"A": "1"}));
        until("the role", || scene.apply("1").is_ok_and(|reply| reply.status == 200));
    }
}

#[test]
fn writes_fail_while_etcd_stands_still_and_succeed_after() {
    let cluster = ControlPlane::own();
    let scene = Scene::new(&cluster);
    scene.apply("1").unwrap();
    cluster.stop_etcd();
    let slow = scene.api.clone().within(Duration::from_secs(3));
    assert!(slow.try_apply(&scene.path(), &secret("2"), "keytide", true).is_err());
    let path = format!("{}?timeout=1s", scene.path());
    let reply = cluster.api().ask("DELETE", &path, None).unwrap();
    assert_eq!((reply.status, reply.reason()), (504, "Timeout"));
    cluster.continue_etcd();
    until("a write", || scene.apply("3").is_ok_and(|reply| reply.is_success()));
    assert_eq!(scene.values(), json!({"A": "3"}));
}

#[test]
fn two_daemons_of_one_stage_run_beside_each_other() {
    let stage = KubeStage::new(ControlPlane::shared());
    stage.stage.aws.put("prod/a", "1");
    let config = block("interval: 1s, jitter: 0", "keys: [{name: A, secret: prod/a}]");
    let pod = stage.pod("keytide-1");
    stage.config(&config);
    pod.config(&config);
    let (first, second) = (stage.run(), pod.run());
    first.until_ready();
    second.until_ready();
    stage.stage.until_values(&json!({"A": "1"}));
    assert_ne!(first.address(), second.address());
    assert_eq!(pod.status()["keys"][0]["name"], "A");
    assert!(pod.path("env/keys.json").is_file());
    assert_eq!(stage.gate.requests().len(), 0);
    assert_eq!(stage.api.list(&stage.namespace.path("secrets")).len(), 0);
}
