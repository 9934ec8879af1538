//! What the API server would allow, asked beforehand: for `check --online`.

use k8s_openapi::api::authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec};
use kube::{Api, api::PostParams};

use super::{
    client::{CALL, Cluster},
    outcome::{Subject, Trouble, Verb},
};
use crate::plan::role::Rule;

/// True if the service account may do all of what a rule says; else the verbs that it may not.
///
/// # Errors
/// If the API server does not say.
pub async fn missing(cluster: &Cluster, rule: &Rule) -> Result<Vec<(String, String)>, Trouble> {
    let api: Api<SelfSubjectAccessReview> = Api::all(cluster.client());
    let subject = Subject {
        group: "authorization.k8s.io",
        resource: "selfsubjectaccessreviews",
        name: rule.resource().to_owned(),
    };
    let mut missing = Vec::new();
    for name in rule.names() {
        for verb in rule.verbs() {
            let attributes = ResourceAttributes {
                group: Some(rule.group().to_owned()),
                resource: Some(rule.resource().to_owned()),
                name: Some(name.clone()),
                namespace: Some(cluster.namespace().to_owned()),
                verb: Some((*verb).to_owned()),
                ..ResourceAttributes::default()
            };
            let spec = SelfSubjectAccessReviewSpec { resource_attributes: Some(attributes), ..Default::default() };
            let review = SelfSubjectAccessReview { spec, ..SelfSubjectAccessReview::default() };
            let params = PostParams::default();
            let call = api.create(&params, &review);
            let answer = cluster.call(Verb::Create, &subject, CALL, call).await?;
            if !answer.status.is_some_and(|status| status.allowed) {
                missing.push((name.clone(), (*verb).to_owned()));
            }
        }
    }
    Ok(missing)
}
