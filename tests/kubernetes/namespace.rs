//! A place in the cluster that no other test sees, and a service account there that may do what the test allows.

use std::{
    cell::{Cell, RefCell},
    fs,
    os::unix::fs::{PermissionsExt as _, chown},
    path::{Path, PathBuf},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Map, Value, json};

use crate::{
    api::{Api, Reply},
    control_plane::ControlPlane,
    support::{USER, is_root, until},
};

pub(crate) const SERVICE_ACCOUNT: &str = "keytide";
/// A Secret with this annotation is what [`Namespace::refuse_secrets`] refuses.
pub(crate) const REFUSED: &str = "keytide.test/refused";

const RBAC: &str = "apis/rbac.authorization.k8s.io/v1";
const ADMISSION: &str = "apis/admissionregistration.k8s.io/v1";
/// The Secret that every policy refuses, by which one sees that it is in force.
const PROBE: &str = "keytide-probe";

/// A namespace with the service account `keytide`, its token, and the files that lead to it.
pub(crate) struct Namespace {
    name: String,
    admin: Api,
    ca: PathBuf,
    files: PathBuf,
    kubeconfigs: Cell<usize>,
    /// Those that are bound, with their rules.
    roles: RefCell<Vec<(String, Value)>>,
}

// === impl Namespace ===

impl Namespace {
    pub(crate) fn new(cluster: &ControlPlane) -> Self {
        let name = format!("test-{:016x}", fastrand::u64(..));
        // Removed with the cluster, however that ends.
        let files = cluster.directory().join(&name);
        fs::create_dir(&files).unwrap();
        fs::set_permissions(&files, fs::Permissions::from_mode(0o755)).unwrap();
        let (admin, ca) = (cluster.api().clone(), cluster.ca_path());
        let namespace = Self { name, admin, ca, files, kubeconfigs: Cell::default(), roles: RefCell::default() };
        namespace.admin.create("/api/v1/namespaces", &json!({"metadata": {"name": namespace.name}}));
        namespace.replace_token(&namespace.new_token());
        namespace
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The path of something in this namespace, such as `secrets/a` or `leases`.
    pub(crate) fn path(&self, resource: &str) -> String {
        let group = match resource.split('/').next().unwrap_or_default() {
            "deployments" | "daemonsets" | "statefulsets" => "apis/apps/v1",
            "events" => "apis/events.k8s.io/v1",
            "leases" => "apis/coordination.k8s.io/v1",
            "roles" | "rolebindings" => RBAC,
            _ => "api/v1",
        };
        format!("/{group}/namespaces/{}/{resource}", self.name)
    }

    /// The API as the service account of this token sees it.
    pub(crate) fn api(&self, token: &str) -> Api {
        self.admin.with_token(token)
    }

    /// Gives the service account this role (`metadata.name` and `rules`), and waits until the API server knows.
    pub(crate) fn role(&self, role: &Value) {
        let name = role["metadata"]["name"].as_str().expect("a role has a name").to_owned();
        let mut role = role.clone();
        (role["apiVersion"], role["kind"]) = (json!("rbac.authorization.k8s.io/v1"), json!("Role"));
        role["metadata"]["namespace"] = json!(self.name);
        self.admin.apply(&self.path(&format!("roles/{name}")), &role, "test", true);
        let binding = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": {"name": name},
            "subjects": [{"kind": "ServiceAccount", "name": SERVICE_ACCOUNT, "namespace": self.name}],
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
        });
        self.admin.apply(&self.path(&format!("rolebindings/{name}")), &binding, "test", true);
        let api = self.api(&self.new_token());
        until("the role to be in force", || rights(&role["rules"]).iter().all(|right| self.may(&api, right)));
        self.roles.borrow_mut().push((name, role["rules"].clone()));
    }

    /// Takes a role away again, and waits until the API server knows. Nothing else may grant its first right.
    pub(crate) fn take_role(&self, name: &str) {
        let (_, rules) = self.roles.borrow().iter().rfind(|(given, _)| given == name).cloned().expect("a given role");
        self.admin.delete(&self.path(&format!("rolebindings/{name}")));
        let (api, rights) = (self.api(&self.new_token()), rights(&rules));
        until("the role to be gone", || !self.may(&api, &rights[0]));
    }

    /// Whether this token allows it: `verb`, `group`, `resource`, and perhaps `name`.
    fn may(&self, api: &Api, right: &Value) -> bool {
        let mut attributes = right.clone();
        attributes["namespace"] = json!(self.name);
        let review = json!({
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": attributes},
        });
        let answer = api.create("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", &review);
        answer["status"]["allowed"] == true
    }

    /// A new token of the service account, which is made if it does not exist.
    pub(crate) fn new_token(&self) -> String {
        let path = self.path(&format!("serviceaccounts/{SERVICE_ACCOUNT}"));
        if self.admin.get(&path).is_none() {
            self.admin.create(&self.path("serviceaccounts"), &json!({"metadata": {"name": SERVICE_ACCOUNT}}));
        }
        let answer = self.admin.create(&format!("{path}/token"), &json!({"spec": {"expirationSeconds": 3600}}));
        answer["status"]["token"].as_str().unwrap().to_owned()
    }

    /// The token that a kubeconfig leads to.
    pub(crate) fn token(&self) -> String {
        fs::read_to_string(self.token_path()).unwrap()
    }

    pub(crate) fn token_path(&self) -> PathBuf {
        self.files.join("token")
    }

    /// Puts another token in its place, as the kubelet does: at once.
    pub(crate) fn replace_token(&self, token: &str) {
        let next = self.write("token.next", token);
        fs::rename(next, self.token_path()).unwrap();
    }

    /// Deletes the service account, and waits until its tokens are worth nothing: the API server remembers for ten
    /// seconds that one was good.
    pub(crate) fn revoke(&self) {
        let api = self.api(&self.token());
        self.admin.delete(&self.path(&format!("serviceaccounts/{SERVICE_ACCOUNT}")));
        until("the token to be refused", || api.ask("GET", "/version", None).is_ok_and(|reply| reply.status == 401));
    }

    /// Writes a kubeconfig for the service account on this server.
    pub(crate) fn kubeconfig(&self, server_url: &str) -> PathBuf {
        let number = self.kubeconfigs.replace(self.kubeconfigs.get() + 1);
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: test\nclusters:\n- name: test\n  cluster:\n    server: \
             {server_url}\n    certificate-authority: {}\nusers:\n- name: keytide\n  user:\n    tokenFile: {}\n\
             contexts:\n- name: test\n  context:\n    cluster: test\n    user: keytide\n    namespace: {}\n",
            self.ca.display(),
            self.token_path().display(),
            self.name,
        );
        self.write(&format!("kubeconfig-{number}.yaml"), &text)
    }

    pub(crate) fn secret(&self, name: &str) -> Option<Value> {
        self.admin.get(&self.path(&format!("secrets/{name}")))
    }

    /// The keys of a Secret with their values as text; null if there is no such Secret.
    pub(crate) fn values(&self, name: &str) -> Value {
        let Some(secret) = self.secret(name) else { return Value::Null };
        let data = secret["data"].as_object().cloned().unwrap_or_default();
        let values = data.into_iter().map(|(key, value)| {
            let value = STANDARD.decode(value.as_str().unwrap()).unwrap();
            (key, json!(String::from_utf8_lossy(&value)))
        });
        Value::Object(values.collect::<Map<_, _>>())
    }

    /// Waits until a Secret holds exactly this.
    pub(crate) fn until_values(&self, name: &str, values: &Value) {
        until(&format!("the Secret {name} to hold {values}"), || self.values(name) == *values);
    }

    /// The version of a Secret: the same only if nobody wrote.
    pub(crate) fn resource_version(&self, name: &str) -> String {
        let secret = self.secret(name).expect("a Secret of this name");
        secret["metadata"]["resourceVersion"].as_str().unwrap().to_owned()
    }

    pub(crate) fn lease(&self, name: &str) -> Option<Value> {
        self.admin.get(&self.path(&format!("leases/{name}")))
    }

    pub(crate) fn events(&self) -> Vec<Value> {
        self.admin.list(&self.path("events"))
    }

    /// An admission policy that refuses each Secret of this namespace that has the annotation [`REFUSED`], with this
    /// message; it is in force.
    pub(crate) fn refuse_secrets(&self, message: &str) {
        self.refuse_secrets_with(
            &format!("has(object.metadata.annotations) && '{REFUSED}' in object.metadata.annotations"),
            message,
        );
    }

    /// The same for Secrets of which a CEL expression is true.
    pub(crate) fn refuse_secrets_with(&self, expression: &str, message: &str) {
        let policy = json!({
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "ValidatingAdmissionPolicy",
            "metadata": {"name": self.name},
            "spec": {
                "failurePolicy": "Fail",
                "matchConstraints": {"resourceRules": [{
                    "apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE"], "resources": ["secrets"],
                }]},
                "validations": [{
                    "expression": format!("object.metadata.name != '{PROBE}' && !({expression})"), "message": message,
                }],
            },
        });
        let binding = json!({
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "ValidatingAdmissionPolicyBinding",
            "metadata": {"name": self.name},
            "spec": {
                "policyName": self.name,
                "validationActions": ["Deny"],
                "matchResources": {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": self.name}}},
            },
        });
        for (kind, object) in [("validatingadmissionpolicies", policy), ("validatingadmissionpolicybindings", binding)]
        {
            self.admin.apply(&format!("/{ADMISSION}/{kind}/{}", self.name), &object, "test", true);
        }
        until("the policy to be in force", || {
            let refusal = self.probe();
            refusal.status == 422 && refusal.body["message"].as_str().is_some_and(|text| text.contains(message))
        });
    }

    /// Takes the policy away again.
    pub(crate) fn allow_secrets(&self) {
        for kind in ["validatingadmissionpolicybindings", "validatingadmissionpolicies"] {
            self.admin.delete(&format!("/{ADMISSION}/{kind}/{}", self.name));
        }
        until("the policy to be gone", || self.probe().is_success());
    }

    /// Asks whether the Secret could be made that every policy refuses.
    fn probe(&self) -> Reply {
        let path = self.path("secrets?dryRun=All");
        self.admin.ask("POST", &path, Some(("application/json", &json!({"metadata": {"name": PROBE}})))).unwrap()
    }

    /// Deletes the namespace. Without a controller manager it stays, `Terminating`, and takes in nothing new.
    pub(crate) fn terminate(&self) {
        self.admin.delete(&format!("/api/v1/namespaces/{}", self.name));
        until("the namespace to take in nothing new", || self.probe().status == 403);
    }

    /// Writes a file that keytide's user owns.
    fn write(&self, name: &str, content: &str) -> PathBuf {
        let path = self.files.join(name);
        fs::write(&path, content).unwrap();
        own(&path);
        path
    }
}

fn own(path: &Path) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    if is_root() {
        chown(path, Some(USER), Some(USER)).unwrap();
    }
}

/// What the rules of a role allow, one by one.
fn rights(rules: &Value) -> Vec<Value> {
    let texts = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().filter_map(|text| text.as_str().map(str::to_owned)).collect()
    };
    let mut rights = Vec::new();
    for rule in rules.as_array().into_iter().flatten() {
        let mut names: Vec<Option<String>> = texts(&rule["resourceNames"]).into_iter().map(Some).collect();
        if names.is_empty() {
            names.push(None);
        }
        for verb in texts(&rule["verbs"]) {
            for group in texts(&rule["apiGroups"]) {
                for resource in texts(&rule["resources"]) {
                    let (resource, subresource) = resource.split_once('/').unwrap_or((&resource, ""));
                    for name in &names {
                        rights.push(json!({
                            "verb": verb, "group": group, "resource": resource, "subresource": subresource, "name": name,
                        }));
                    }
                }
            }
        }
    }
    rights
}
