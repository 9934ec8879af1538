//! Kubeconfigs: where a cluster is and who keytide is there, as somebody else wrote it down.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
};

use hyper::Uri;
use kube::{
    Config,
    config::{AuthInfo, Cluster, KubeConfigOptions, Kubeconfig, NamedAuthInfo, NamedCluster},
};

use super::{
    client::{ClusterError, proxy_of},
    outcome,
};
use crate::{
    config::{Network, plain_yaml},
    small_file,
};

/// Certificates in it are a few KiB each.
const LARGEST: u64 = 1024 * 1024;

/// What the files together say of the present context, as `kubectl` reads them.
pub(super) async fn load(
    files: &[PathBuf],
    run_programs: bool,
    path: &PathBuf,
    network: &Network,
) -> Result<Config, ClusterError> {
    let wrong = |path: &PathBuf, what| ClusterError::Kubeconfig { path: path.clone(), what };
    let mut merged: Option<Kubeconfig> = None;
    for file in files {
        let one = read(file).map_err(|what| wrong(file, what))?;
        merged = Some(match merged {
            Some(before) => before.merge(one).map_err(|error| wrong(file, outcome::about_kubeconfig(&error)))?,
            None => one,
        });
    }
    let merged = merged.ok_or(ClusterError::Nowhere)?;
    let own_proxy = proxy_in(&merged).map_err(|what| wrong(path, what))?;
    let options = KubeConfigOptions::default();
    let mut config = Config::from_custom_kubeconfig(merged, &options)
        .await
        .map_err(|error| wrong(path, outcome::about_kubeconfig(&error)))?;
    let programs = config.auth_info.exec.is_some() || config.auth_info.auth_provider.is_some();
    if programs && !run_programs {
        return Err(ClusterError::Program(path.clone()));
    }
    let host = config.cluster_url.host().unwrap_or_default();
    let nearby = host == "localhost"
        || host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    if config.cluster_url.scheme_str() != Some("https") && !nearby {
        return Err(ClusterError::Plain(path.clone()));
    }
    // kube asks NO_PROXY about the proxy, not about the API server.
    config.proxy_url = match own_proxy {
        Some(url) => Some(url),
        None => proxy_of(network, &config.cluster_url)?,
    };
    Ok(config)
}

/// One file. Its YAML is read by the reader of the configuration: kube's own would be 0.4 MB more of the program.
fn read(path: &Path) -> Result<Kubeconfig, &'static str> {
    let text = small_file::read(path, LARGEST).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    let content = plain_yaml(&text.ok_or("it cannot be read")?).ok_or("it is not the YAML of a kubeconfig")?;
    let mut kubeconfig: Kubeconfig = if content.is_null() {
        Kubeconfig::default()
    } else {
        serde_json::from_value(content).map_err(|_| "it is not the YAML of a kubeconfig")?
    };
    if let Some(directory) = path.parent() {
        for NamedCluster { cluster, .. } in &mut kubeconfig.clusters {
            if let Some(Cluster { certificate_authority, .. }) = cluster {
                resolve(directory, certificate_authority);
            }
        }
        for NamedAuthInfo { auth_info, .. } in &mut kubeconfig.auth_infos {
            if let Some(AuthInfo { client_certificate, client_key, token_file, exec, .. }) = auth_info {
                for path in [client_certificate, client_key, token_file] {
                    resolve(directory, path);
                }
                // One without a slash is looked up in PATH.
                if let Some(program) = exec.as_mut().map(|exec| &mut exec.command)
                    && program.as_ref().is_some_and(|program| program.contains('/'))
                {
                    resolve(directory, program);
                }
            }
        }
    }
    Ok(kubeconfig)
}

/// Paths in it are relative to its own directory.
fn resolve(directory: &Path, path: &mut Option<String>) {
    if let Some(path) = path
        && let Some(resolved) = directory.join(&*path).to_str()
    {
        resolved.clone_into(path);
    }
}

/// The proxy that the cluster of the present context names. Its user is looked up as well: kube takes one that is not there
/// for nobody.
fn proxy_in(kubeconfig: &Kubeconfig) -> Result<Option<Uri>, &'static str> {
    let Kubeconfig { current_context, contexts, clusters, auth_infos, .. } = kubeconfig;
    let context = contexts.iter().find(|context| Some(&context.name) == current_context.as_ref());
    let Some(context) = context.and_then(|named| named.context.as_ref()) else { return Ok(None) };
    if let Some(user) = &context.user
        && !auth_infos.iter().any(|named| named.name == *user)
    {
        return Err("its context names a user that it does not have");
    }
    let cluster = clusters.iter().find(|named| named.name == context.cluster);
    let proxy = cluster.and_then(|NamedCluster { cluster, .. }| cluster.as_ref()?.proxy_url.as_deref());
    let proxy = proxy.filter(|url| !url.is_empty()).map(str::parse);
    proxy.transpose().map_err(|_| "the proxy-url of its cluster is no URL")
}
