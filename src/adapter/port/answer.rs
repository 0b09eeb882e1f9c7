//! The answers to permissions and questions.

use serde_json::Value;

use crate::adapter::port::access::RequestError;
use crate::adapter::port::inject::optional_text;
use crate::adapter::runtime::action::PermissionDecision;

/// The body of any other route.
pub(crate) const MAX_ANSWER: usize = 128 << 10;

pub(crate) fn permission(body: &Value) -> Result<PermissionDecision, RequestError> {
    let message = optional_text(body, "message")?;
    match body["decision"].as_str() {
        Some("allow") => Ok(PermissionDecision::Allow),
        Some("allow_always") => Ok(PermissionDecision::AllowAlways),
        Some("deny") => Ok(PermissionDecision::Deny { message }),
        _ => Err(RequestError::new(
            400,
            "bad_request",
            format!(
                "`decision` is `{}`; allowed: `allow`, `allow_always`, `deny`",
                body["decision"]
            ),
        )),
    }
}

/// One answer, one a question, or none.
pub(crate) fn question(body: &Value) -> Result<PermissionDecision, RequestError> {
    let texts = |v: &Value| {
        v.as_array().and_then(|all| {
            all.iter()
                .map(|t| t.as_str().map(str::to_owned))
                .collect::<Option<Vec<_>>>()
        })
    };
    match (&body["answer"], &body["answers"], &body["reject"]) {
        (Value::String(answer), Value::Null, _) => {
            Ok(PermissionDecision::Answers(vec![vec![answer.clone()]]))
        }
        (Value::Null, answers @ Value::Array(all), _) => {
            let each = texts(answers)
                .map(|flat| flat.into_iter().map(|t| vec![t]).collect())
                .or_else(|| all.iter().map(texts).collect());
            each.map(PermissionDecision::Answers).ok_or_else(|| {
                RequestError::new(
                    400,
                    "bad_request",
                    "`answers` is not a list of texts, or of lists of texts",
                )
            })
        }
        (Value::Null, Value::Null, Value::Bool(true)) => Ok(PermissionDecision::RejectQuestion),
        _ => Err(RequestError::new(
            400,
            "bad_request",
            "one of `answer` (a text), `answers` (one a question) and `reject: true` is needed",
        )),
    }
}
