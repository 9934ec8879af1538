//! Pods and processes end.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::{
    aws::Aws,
    namespace::{Namespace, run_on_node},
    sidecar::{Sidecar, application},
    starting::WAIT,
    wait::until,
};

/// Drops a virtual key as any producer does: writes it beside, then renames it.
const DROP: &str = "cd /run/keytide/spool/in && umask 022 && echo '{\"op\":\"create\",\"alias\":\"last\",\"value\":\"sk-last\"}' >.new && \
                    mv .new 00000001700000000000-app-1.json";

/// Somewhat less than keytide delivers for after it was asked to end, which is 8 seconds.
const DELIVERS: Duration = Duration::from_secs(7);

#[test]
fn a_virtual_key_of_the_applications_last_second_is_stored_after_keytide_too_was_asked_to_end() {
    let namespace = Namespace::new("last");
    let aws = Aws::start(&namespace, &json!({"secrets": {"app": {"API_KEY": "one"}}}));
    // A machine that is too slow to be in time begins anew.
    let in_time = (0..5).any(|attempt| {
        let name = format!("app-{attempt}");
        let mut spec = application(WAIT);
        let drop = DROP.replace("\"last\"", &format!("\"{name}\""));
        spec["containers"][0]["lifecycle"] = json!({"preStop": {"exec": {"command": ["sh", "-c", drop]}}});
        spec["terminationGracePeriodSeconds"] = json!(60);
        Sidecar::new(&aws).with_spool().start(&namespace, &name, &spec);
        namespace.until_ready(&name);
        // AWS takes no key before keytide was asked to end: what it delivers, it delivers then.
        aws.ill(&json!("throttle"));
        let began = Instant::now();
        namespace.kubectl(&["delete", "pod", &name, "--wait=false"]);
        namespace.until_log(&name, "keytide", "1 entries of the spool are delivered before the end");
        aws.well();
        let in_time = began.elapsed() < DELIVERS;
        namespace.until_gone(&name);
        assert!(!in_time || aws.get(&format!("vk/{name}")).as_deref() == Some("sk-last"), "{name}");
        in_time
    });
    assert!(in_time, "a machine that ends a pod within seconds");
}

#[test]
fn a_virtual_key_of_an_application_that_uses_up_its_grace_period_is_stored_before_the_pod_is_gone() {
    let namespace = Namespace::new("deaf");
    let aws = Aws::start(&namespace, &json!({"secrets": {"app": {"API_KEY": "one"}}}));
    // The shell does not hear SIGTERM.
    let mut spec = application("sleep 600");
    spec["containers"][0]["lifecycle"] = json!({"preStop": {"exec": {"command": ["sh", "-c", DROP]}}});
    spec["terminationGracePeriodSeconds"] = json!(5);
    Sidecar::new(&aws).with_spool().start(&namespace, "app", &spec);
    namespace.until_ready("app");
    assert_eq!(aws.get("vk/last"), None);
    namespace.kubectl(&["delete", "pod", "app"]);
    assert_eq!(aws.get("vk/last").as_deref(), Some("sk-last"));
}

#[test]
fn a_job_ends_with_its_application_and_its_virtual_key_is_stored() {
    let namespace = Namespace::new("job");
    let aws = Aws::start(&namespace, &json!({"secrets": {"app": {"API_KEY": "one"}}}));
    let mut spec = application(&format!(". /run/keytide/env/keys.env; [ $API_KEY = one ]; {DROP}"));
    spec["restartPolicy"] = json!("Never");
    let job = json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "job"},
        "spec": {"template": {"metadata": {"labels": {"app": "job"}}, "spec": spec}}});
    Sidecar::new(&aws).with_spool().start_as(&namespace, "job", &job);
    namespace.until_condition("job/job", "Complete");
    assert_eq!(aws.get("vk/last").as_deref(), Some("sk-last"));
    let pods = namespace.pods("job");
    let ended = &pods[0]["status"]["initContainerStatuses"][0]["state"]["terminated"];
    assert_eq!((pods.len(), &ended["exitCode"]), (1, &json!(0)), "{ended}");
}

#[test]
fn a_sidecar_that_is_killed_comes_back_and_the_application_does_not_notice() {
    let namespace = Namespace::new("killed");
    let aws = Aws::start(&namespace, &json!({"secrets": {"app": {"API_KEY": "one"}}}));
    Sidecar::new(&aws).with_spool().start(&namespace, "app", &application("sleep 600"));
    namespace.until_ready("app");
    run_on_node("kill", &["-KILL", &namespace.process("app", "keytide")]);
    namespace.exec("app", "app", &["sh", "-c", DROP]);
    until("a new sidecar", || namespace.container("app", "keytide")["restartCount"] == 1);
    assert_eq!(namespace.exec("app", "app", &["cat", "/run/keytide/env/keys.env"]), "API_KEY='one'\n");
    until("the virtual key", || aws.get("vk/last").is_some());
    aws.put("app", &json!({"API_KEY": "two"}));
    let read = || namespace.exec("app", "app", &["cat", "/run/keytide/env/keys.env"]);
    until("the key of now", || read() == "API_KEY='two'\n");
    assert_eq!(namespace.container("app", "app")["restartCount"], 0);
}

#[test]
fn an_evicted_pod_delivers_what_it_has_and_its_successor_starts_with_keys() {
    let namespace = Namespace::new("evicted");
    let aws = Aws::start(&namespace, &json!({"secrets": {"app": {"API_KEY": "one"}}}));
    let mut spec = application(WAIT);
    spec["containers"][0]["lifecycle"] = json!({"preStop": {"exec": {"command": ["sh", "-c", DROP]}}});
    let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "app"},
        "spec": {"selector": {"matchLabels": {"app": "app"}},
            "template": {"metadata": {"labels": {"app": "app"}}, "spec": spec}}});
    Sidecar::new(&aws).with_spool().start_as(&namespace, "app", &deployment);
    namespace.kubectl(&["rollout", "status", "deployment/app", "--timeout", "120s"]);
    let first = namespace.pods("app")[0]["metadata"]["name"].as_str().unwrap().to_owned();
    namespace.assert_within_limits();
    let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": first}});
    let path = format!("/api/v1/namespaces/{}/pods/{first}/eviction", namespace.name());
    let output = namespace.cluster().try_kubectl(&["create", "--raw", &path, "-f", "-"], &eviction.to_string());
    assert!(output.status.success(), "{output:?}");
    namespace.until_gone(&first);
    assert_eq!(aws.get("vk/last").as_deref(), Some("sk-last"));
    namespace.kubectl(&["rollout", "status", "deployment/app", "--timeout", "120s"]);
    let second = namespace.pods("app")[0]["metadata"]["name"].as_str().unwrap().to_owned();
    assert_ne!(first, second);
    assert_eq!(namespace.exec(&second, "app", &["cat", "/run/keytide/env/keys.env"]), "API_KEY='one'\n");
}
