//! How keytide finds the API server, whom it trusts there, and who it is there: a pod's files, a kubeconfig, proxies.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use keytide_emulator::Proxy;

use crate::{
    control_plane::ControlPlane,
    outage::{ALONE, configure, follows, holds, output, says, stage},
    stage::KubeStage,
    support::{Daemon, USER, is_root, stderr, until},
};

const CANARY: &str = "canary-kubeconfig-71c3d9";

/// Runs `keytide run`, which must end by itself, with code 1 and these words, and without a word of any file.
#[track_caller]
fn refuses(kube: &KubeStage, arguments: &[&str], words: &str) {
    let output = run_to_end(kube, arguments);
    let text = stderr(&output);
    assert!(text.contains(words), "{words:?} is not in:\n{text}");
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(!text.contains(CANARY) && !text.contains(&kube.namespace.token()), "{text}");
}

fn run_to_end(kube: &KubeStage, arguments: &[&str]) -> Output {
    let config = kube.stage.path("keytide.yaml").display().to_string();
    kube.stage.keytide(&[&["run", "--config", &config, "--once", "--timeout", "15s"], arguments].concat())
}

/// Writes a kubeconfig, which `KUBECONFIG` names from now on.
fn use_kubeconfig(kube: &mut KubeStage, text: &str) -> PathBuf {
    let path = kube.stage.write("kubeconfig.yaml", text);
    kube.stage.env("KUBECONFIG", &path.display().to_string());
    path
}

/// A kubeconfig straight to the API server.
fn direct(kube: &KubeStage, cluster: &ControlPlane) -> String {
    fs::read_to_string(kube.namespace.kubeconfig(&cluster.url())).unwrap()
}

/// The same with an answer to who one is that a program gives.
fn with_program(kubeconfig: &str, program: &Path) -> String {
    let (before, rest) = kubeconfig.split_once("    tokenFile:").unwrap();
    let (_, after) = rest.split_once('\n').unwrap();
    format!(
        "{before}    exec:\n      apiVersion: client.authentication.k8s.io/v1\n      command: {}\n      interactiveMode: \
         Never\n{after}",
        program.display()
    )
}

/// A program that keytide's user can run.
fn program(kube: &KubeStage, text: &str) -> PathBuf {
    let path = kube.stage.write("program", format!("#!/bin/sh\n{text}\n"));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
    path
}

#[test]
fn without_a_pod_and_a_kubeconfig_there_is_no_kubernetes() {
    let mut kube = KubeStage::new(ControlPlane::shared());
    configure(&kube, ALONE);
    kube.stage.env_remove("KUBECONFIG");
    let words = "neither KUBECONFIG nor --kubeconfig names a kubeconfig";
    refuses(&kube, &[], words);
    kube.stage.env("KUBECONFIG", "");
    refuses(&kube, &[], words);
}

#[test]
fn a_kubeconfig_that_cannot_be_used_is_named_and_not_quoted() {
    let cluster = ControlPlane::shared();
    let mut kube = KubeStage::new(cluster);
    configure(&kube, ALONE);
    let good = direct(&kube, cluster);
    let other = |from: &str, to: &str| {
        assert!(good.contains(from), "{from}");
        good.replacen(from, to, 1)
    };
    let authority = cluster.ca_path().display().to_string();
    let token = kube.namespace.token_path().display().to_string();
    let with_canary = kube.stage.write("canary", format!("{CANARY}\n")).display().to_string();
    for (text, words) in [
        (String::new(), "kubeconfig.yaml: it has no current-context"),
        (format!("{CANARY}: [\n"), "kubeconfig.yaml: it is not the YAML of a kubeconfig"),
        (format!("- {CANARY}\n"), "kubeconfig.yaml: it is not the YAML of a kubeconfig"),
        (other("current-context: test\n", ""), "kubeconfig.yaml: it has no current-context"),
        (
            other("current-context: test", &format!("current-context: {CANARY}")),
            "kubeconfig.yaml: its current-context names a context that it does not have",
        ),
        (
            other("    cluster: test", &format!("    cluster: {CANARY}")),
            "kubeconfig.yaml: its context names a cluster that it does not have",
        ),
        (
            other("    user: keytide", &format!("    user: {CANARY}")),
            "kubeconfig.yaml: its context names a user that it does not have",
        ),
        (
            other(&format!("server: {}", cluster.url()), "insecure-skip-tls-verify: false"),
            "kubeconfig.yaml: its cluster has no server",
        ),
        (other(&authority, "/nonexistent"), "kubeconfig.yaml: the certificate authority of its cluster cannot be read"),
        (other(&authority, &with_canary), "the certificate"),
        (other(&token, "/nonexistent"), "the token, or the program that gives one, cannot be used"),
        (
            other("server: https://127.0.0.1", "server: http://192.0.2.1"),
            "is called by plain http, which is refused but for this machine",
        ),
        (
            other("    server:", "    proxy-url: socks5://127.0.0.1:1\n    server:"),
            "a proxy of this kind cannot be used; expected http or https",
        ),
    ] {
        use_kubeconfig(&mut kube, &text);
        refuses(&kube, &[], words);
    }
    kube.stage.env("KUBECONFIG", "/nonexistent/kubeconfig");
    refuses(&kube, &[], "the kubeconfig /nonexistent/kubeconfig: it cannot be read");
    refuses(&kube, &["--kubeconfig", "/nonexistent/other"], "the kubeconfig /nonexistent/other: it cannot be read");
}

#[test]
fn several_kubeconfigs_are_one() {
    let cluster = ControlPlane::shared();
    let mut kube = stage(cluster, ALONE);
    let whole = direct(&kube, cluster);
    let (clusters, users) = whole.split_once("users:\n").unwrap();
    let header = "apiVersion: v1\nkind: Config\n";
    let first = kube.stage.write("first", clusters);
    let second = kube.stage.write("second", format!("{header}users:\n{users}"));
    kube.stage.env("KUBECONFIG", &format!("{}:{}", first.display(), second.display()));
    let output = run_to_end(&kube, &[]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    holds(&kube, "first");
}

#[test]
fn the_api_servers_certificate_must_be_of_the_authority_that_the_kubeconfig_names() {
    let cluster = ControlPlane::shared();
    let mut kube = stage(cluster, ALONE);
    let good = direct(&kube, cluster);
    use_kubeconfig(&mut kube, &good);
    let output = run_to_end(&kube, &[]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    holds(&kube, "first");
    let other = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap().cert.pem();
    let other = kube.stage.write("other.pem", other).display().to_string();
    use_kubeconfig(&mut kube, &good.replace(&cluster.ca_path().display().to_string(), &other));
    refuses(
        &kube,
        &[],
        // And not a key that nobody read.
        "missing: output kubernetes_secret: failed to get leases/keytide-app: no TLS: the API server's certificate is not \
         of the certificate authority that is trusted here",
    );
    // Of a name that it does not have.
    use_kubeconfig(&mut kube, &good.replace("    server:", "    tls-server-name: other.example.com\n    server:"));
    refuses(&kube, &[], "no TLS: the API server's certificate is for another name");
}

// --- programs

/// Prints the token that is in the namespace's file, and writes down that it was run.
fn teller(kube: &KubeStage) -> PathBuf {
    program(
        kube,
        &format!(
            "echo run >>{}\nprintf '{{\"apiVersion\": \"client.authentication.k8s.io/v1\", \"kind\": \"ExecCredential\", \
             \"status\": {{\"token\": \"%s\"}}}}' \"$(cat {})\"",
            kube.stage.path("runs").display(),
            kube.namespace.token_path().display()
        ),
    )
}

#[test]
fn a_program_is_run_only_for_the_kubeconfig_of_the_command_line() {
    let cluster = ControlPlane::shared();
    let mut kube = stage(cluster, ALONE);
    let text = with_program(&direct(&kube, cluster), &teller(&kube));
    let path = use_kubeconfig(&mut kube, &text).display().to_string();
    refuses(&kube, &[], "which keytide runs only if --kubeconfig names the file");
    let config = kube.stage.path("keytide.yaml").display().to_string();
    let checked = kube.stage.keytide(&["check", "--online", "--config", &config]);
    assert!(stderr(&checked).contains("which keytide runs only if"), "{}", stderr(&checked));
    assert_eq!(kube.stage.read("runs"), "");
    let daemon = kube.stage.run_with(&["run", "--config", &config, "--kubeconfig", &path]);
    daemon.until_ready();
    holds(&kube, "first");
    assert_ne!(kube.stage.read("runs"), "");
    // A token that is refused is asked for again.
    kube.namespace.revoke();
    says(&kube, "failing", "does not accept the service account's token");
    kube.namespace.replace_token(&kube.namespace.new_token());
    follows(&kube, "second");
}

#[test]
fn a_program_that_fails_or_does_not_end_is_said() {
    let cluster = ControlPlane::shared();
    let kube = stage(cluster, ALONE);
    let path = kube.stage.path("kubeconfig.yaml").display().to_string();
    for (script, words) in [
        (format!("echo {CANARY}; exit 1"), "the token, or the program that gives one, cannot be used"),
        (format!("echo '{{{CANARY}'"), "the token, or the program that gives one, cannot be used"),
        ("exec sleep 300".to_owned(), "the program that gives the token does not end"),
    ] {
        kube.stage.write("kubeconfig.yaml", with_program(&direct(&kube, cluster), &program(&kube, &script)));
        let began = Instant::now();
        refuses(&kube, &["--kubeconfig", &path], words);
        assert!(began.elapsed() < Duration::from_secs(45), "{:?}", began.elapsed());
    }
}

// --- proxies

#[test]
fn the_proxy_of_the_kubeconfig_leads_to_the_api_server() {
    let cluster = ControlPlane::shared();
    let proxy = Proxy::start(cluster.upstream().address()).unwrap().credentials("team", CANARY);
    let mut kube = stage(cluster, ALONE);
    let through = |password: &str| {
        let url = proxy.url().replace("http://", &format!("http://team:{password}@"));
        direct(&kube, cluster).replace("    server:", &format!("    proxy-url: {url}\n    server:"))
    };
    let (good, bad) = (through(CANARY), through("other"));
    use_kubeconfig(&mut kube, &bad);
    refuses(&kube, &[], "the proxy does not accept the user and password of its URL");
    use_kubeconfig(&mut kube, &good);
    // What says of the environment's proxy when to pass it by says nothing of this one.
    kube.stage.env("NO_PROXY", "127.0.0.1");
    let daemon = kube.run();
    daemon.until_ready();
    holds(&kube, "first");
    assert!(proxy.hosts().iter().all(|host| *host == cluster.upstream().address().to_string()));
    assert!(!proxy.hosts().is_empty());
    let seen = daemon.log() + &kube.stage.status().to_string();
    assert!(seen.contains("through the proxy 127.0.0.1") && !seen.contains(CANARY), "{seen}");
}

#[test]
fn the_proxy_of_the_environment_leads_to_the_api_server_unless_it_is_left_out() {
    let cluster = ControlPlane::shared();
    let proxy = Proxy::start(cluster.upstream().address()).unwrap();
    let mut kube = stage(cluster, ALONE);
    let text = direct(&kube, cluster);
    use_kubeconfig(&mut kube, &text);
    kube.stage.env("HTTPS_PROXY", &proxy.url()).env("NO_PROXY", "10.0.0.0/8,127.0.0.1");
    let output = run_to_end(&kube, &[]);
    assert_eq!((output.status.code(), proxy.hosts().len()), (Some(0), 0), "{}", stderr(&output));
    kube.stage.env_remove("NO_PROXY");
    let output = run_to_end(&kube, &[]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(!proxy.hosts().is_empty());
}

// --- pods

/// keytide in a pod: with a `/run` of its own, where the kubelet puts the files of the service account.
fn in_pod(kube: &KubeStage) -> Daemon {
    let config = kube.stage.path("keytide.yaml").display().to_string();
    let keytide = kube.stage.command(&["run", "--config", &config]);
    let script = "mount -t tmpfs none /run && mkdir -p /run/secrets/kubernetes.io && ln -s \"$1\" \
                  /run/secrets/kubernetes.io/serviceaccount && shift && user=$1 && shift && exec setpriv --reuid \"$user\" \
                  --regid \"$user\" --clear-groups \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", script, "sh"]);
    command.arg(kube.stage.path("serviceaccount")).arg(USER.to_string());
    command.arg(keytide.get_program()).args(keytide.get_args()).env_clear().stdin(Stdio::null());
    command.envs(keytide.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    kube.stage.start(command)
}

/// A pod's files and its environment.
fn pod(cluster: &ControlPlane) -> KubeStage {
    assert!(is_root(), "only root can make a pod's file system: run these tests as root");
    let mut kube = stage(cluster, ALONE);
    kube.stage.make_directory("serviceaccount", 0o755);
    kube.stage.write("serviceaccount/namespace", kube.namespace.name());
    kube.stage.write("serviceaccount/ca.crt", fs::read(cluster.ca_path()).unwrap());
    kube.stage.write("serviceaccount/token", kube.namespace.token());
    let address = cluster.upstream().address();
    kube.stage.env_remove("KUBECONFIG").env("KUBERNETES_SERVICE_HOST", &address.ip().to_string());
    kube.stage.env("KUBERNETES_SERVICE_PORT", &address.port().to_string());
    kube
}

#[test]
fn a_pods_service_account_is_enough_and_its_token_is_read_again() {
    let kube = pod(ControlPlane::shared());
    let daemon = in_pod(&kube);
    daemon.until_ready();
    holds(&kube, "first");
    kube.namespace.revoke();
    says(&kube, "failing", "does not accept the service account's token");
    kube.stage.write("serviceaccount/token.next", kube.namespace.new_token());
    fs::rename(kube.stage.path("serviceaccount/token.next"), kube.stage.path("serviceaccount/token")).unwrap();
    follows(&kube, "second");
    until("a Secret that is written", || output(&kube)["state"] == "written");
}

#[test]
fn a_pod_reaches_the_api_server_through_the_proxy_unless_it_is_left_out() {
    let cluster = ControlPlane::shared();
    let mut kube = pod(cluster);
    let proxy = Proxy::start(cluster.upstream().address()).unwrap();
    kube.stage.env("HTTPS_PROXY", &proxy.url()).env("NO_PROXY", "127.0.0.0/8");
    let daemon = in_pod(&kube);
    daemon.until_ready();
    drop(daemon);
    assert_eq!(proxy.hosts().len(), 0);
    kube.stage.env("NO_PROXY", ".svc");
    let daemon = in_pod(&kube);
    until("the proxy to be used", || !proxy.hosts().is_empty());
    // The Lease of the one before ends by itself.
    until("the Lease", || output(&kube)["state"] == "written");
    assert!(daemon.log().contains("Kubernetes is reached through the proxy"), "{}", daemon.log());
}

#[test]
fn a_pod_without_the_files_of_a_service_account_says_what_is_missing() {
    for (missing, words) in [
        ("namespace", "failed to use the service account of the pod: the namespace cannot be read"),
        ("ca.crt", "failed to use the service account of the pod: the certificate authority cannot be read"),
        ("token", "the token, or the program that gives one, cannot be used"),
    ] {
        let kube = pod(ControlPlane::shared());
        fs::remove_file(kube.stage.path(&format!("serviceaccount/{missing}"))).unwrap();
        let mut daemon = in_pod(&kube);
        assert_eq!(daemon.wait(), 1);
        assert!(daemon.log().contains(words), "{}", daemon.log());
    }
}
