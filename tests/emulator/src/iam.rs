//! IAM: what a user or a role may do.

use hyper::StatusCode;

use crate::access::{Access, Principal, account_of, denial};
use crate::answer::{Answer, Refusal, Service, escape};
use crate::form::{self, Form, invalid, required};

/// What a form that is for IAM, and not for STS, says about itself.
pub(crate) const VERSION: &str = "2010-05-08";

pub(crate) fn answer(access: &Access, action: &str, form: &Form, caller: &Principal) -> Result<Answer, Refusal> {
    if action != "SimulatePrincipalPolicy" {
        return Err(Refusal::new("InvalidAction", format!("Could not find operation {action}")));
    }
    Ok(Answer::xml(Service::Iam, action, &simulate(access, form, caller)?))
}

fn simulate(access: &Access, form: &Form, caller: &Principal) -> Result<String, Refusal> {
    let source = required(form, "PolicySourceArn", "policySourceArn")?;
    let actions = actions(form)?;
    let resources = resources(form)?;
    if ["PolicyInputList", "PermissionsBoundaryPolicyInputList"].iter().any(|list| form::count(form, list) != Ok(0)) {
        return Err(Refusal::new("InvalidInput", "this emulator simulates no other policies than the principal's"));
    }
    let name = entity(source).ok_or_else(|| {
        let message = format!("Invalid Entity Arn: {source} does not clearly define entity type and name.");
        Refusal::new("InvalidInput", message)
    })?;
    // Nobody looks into another account, whatever the policies say.
    let permission = "iam:SimulatePrincipalPolicy";
    if account_of(source) != caller.account() || !access.is_allowed(caller, permission, source) {
        return Err(Refusal::forbidden("AccessDenied", denial(caller, permission, source)));
    }
    let statements = access.statements_of(source).ok_or_else(|| {
        let (kind, name) = name;
        let message = format!("The {kind} with name {name} cannot be found.");
        Refusal { status: StatusCode::NOT_FOUND, ..Refusal::new("NoSuchEntity", message) }
    })?;
    let mut members = String::new();
    for action in &actions {
        for resource in &resources {
            let allowed = statements.iter().any(|statement| statement.allows(action, resource));
            members += &member(action, resource, allowed);
        }
    }
    Ok(format!("<IsTruncated>false</IsTruncated><EvaluationResults>{members}</EvaluationResults>"))
}

fn member(action: &str, resource: &str, allowed: bool) -> String {
    let (action, resource) = (escape(action), escape(resource));
    let (decision, matched) = if allowed {
        (
            "allowed",
            "<MatchedStatements><member><SourcePolicyType>IAM Policy</SourcePolicyType></member></MatchedStatements>",
        )
    } else {
        ("implicitDeny", "<MatchedStatements/>")
    };
    format!(
        "<member>{matched}<MissingContextValues/><EvalResourceName>{resource}</EvalResourceName>\
         <EvalDecision>{decision}</EvalDecision><EvalActionName>{action}</EvalActionName></member>"
    )
}

fn actions(form: &Form) -> Result<Vec<&str>, Refusal> {
    let actions = form::texts(form, "ActionNames")?;
    if actions.is_empty() {
        return Err(invalid("null", "actionNames", "Member must not be null"));
    }
    for action in &actions {
        let whole = action.split_once(':').is_some_and(|(service, name)| !service.is_empty() && !name.is_empty());
        if !whole || action.contains(['*', '?']) {
            return Err(Refusal::new("InvalidInput", format!("Invalid Entity Action: {action}")));
        }
    }
    Ok(actions)
}

fn resources(form: &Form) -> Result<Vec<&str>, Refusal> {
    let resources = form::texts(form, "ResourceArns")?;
    let is_arn = |resource: &str| resource.starts_with("arn:") && resource.split(':').count() >= 6;
    if let Some(wrong) = resources.iter().find(|resource| **resource != "*" && !is_arn(resource)) {
        return Err(Refusal::new("InvalidInput", format!("Invalid Resource Arn: {wrong}")));
    }
    Ok(if resources.is_empty() { vec!["*"] } else { resources })
}

/// Whether an ARN is a user's or a role's, and the name of it. A session is neither.
fn entity(arn: &str) -> Option<(&str, &str)> {
    let (kind, path) = arn.strip_prefix("arn:aws:iam::")?.split_once(':')?.1.split_once('/')?;
    let name = path.rsplit('/').next().filter(|name| !name.is_empty())?;
    matches!(kind, "user" | "role").then_some((kind, name))
}
