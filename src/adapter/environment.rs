//! The environment of the CLI: what it inherits, and what it must not.

use std::ffi::OsString;

use crate::adapter::process::MARK;

/// How the variables of model providers, and of the CLIs that use them, begin.
#[rustfmt::skip]
pub(crate) const PROVIDERS: [&str; 34] = [
    "ANTHROPIC_", "OPENAI_", "GEMINI_", "GOOGLE_", "VERTEX_", "AZURE_", "AWS_", "BEDROCK_", "OPENROUTER_", "OLLAMA_", "GROQ_", "MISTRAL_", "XAI_", "DEEPSEEK_",
    "TOGETHER_", "FIREWORKS_", "CEREBRAS_", "COHERE_", "PERPLEXITY_", "HF_", "HUGGINGFACE_", "CLOUDFLARE_", "AICORE_", "MOONSHOT_", "ZAI_", "ZHIPU_", "MINIMAX_",
    "NVIDIA_", "REPLICATE_", "CLAUDE_", "CODEX_", "OPENCODE_", "API_", "COPILOT_",
];

/// And how those end that open an account, or lead to what does.
#[rustfmt::skip]
pub(crate) const KEYS: [&str; 12] = [
    "_KEY", "_APIKEY", "_KEY_ID", "_TOKEN", "_TOKENS", "_SECRET", "_CREDENTIALS", "_TOKEN_FILE", "_CREDENTIALS_FULL_URI", "_CREDENTIALS_RELATIVE_URI", "_PROFILE",
    "_CUSTOM_HEADERS",
];

/// Is this how a model provider's key is called? Those are the sidecar's to hold; what opens
/// other doors is the image's own affair.
pub fn holds_a_key(name: &str) -> bool {
    let name = name.to_ascii_uppercase();
    PROVIDERS.iter().any(|p| name.starts_with(p)) && KEYS.iter().any(|k| name.ends_with(k))
        || [
            "OPENCODE_AUTH_CONTENT",
            "AWS_BEARER_TOKEN_BEDROCK",
            "AWS_WEB_IDENTITY_TOKEN_FILE",
        ]
        .contains(&name.as_str())
}

/// Values that stand for a key and are none.
pub fn is_placeholder(value: &str) -> bool {
    value.is_empty()
        || [
            "outrigger",
            "dummy",
            "placeholder",
            "none",
            "proxy-managed",
            "x1-proxy-managed",
        ]
        .contains(&value)
}

/// What a provider is reached by; nothing that came from elsewhere may point a CLI past the
/// sidecar.
pub fn reroutes(name: &str) -> bool {
    let name = name.to_ascii_uppercase();
    let leads = [
        "OPENCODE_",
        "CODEX_",
        "PI_",
        "CLAUDE_CODE_USE_",
        "GOOGLE_GENAI_USE_",
        "GEMINI_CLI_",
        "GEMINI_DEBUG_",
    ];
    PROVIDERS.iter().any(|p| name.starts_with(p)) && name.ends_with("_BASE_URL")
        || leads.iter().any(|l| name.starts_with(l))
        || name == "ANTHROPIC_UNIX_SOCKET"
        || name == MARK
}

/// The CLI's environment. It starts from the container's: all of it with `inherit`, otherwise only
/// what every program needs. Variables that hold a key are left out unless they are `allowed`, and
/// so are those that lead the CLI to another provider. `ours` are set last. `sidecar` is the host
/// of the sidecar, which `NO_PROXY` names.
pub fn environment(
    inherit: bool,
    allowed: &[String],
    ours: &[(String, String)],
    sidecar: &str,
) -> Vec<(OsString, OsString)> {
    const PLAIN: [&str; 13] = [
        "PATH",
        "HOME",
        "USER",
        "LOGNAME",
        "SHELL",
        "LANG",
        "TZ",
        "TERM",
        "TMPDIR",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
        "NODE_EXTRA_CA_CERTS",
        "NO_COLOR",
    ];
    let mut env: Vec<(OsString, OsString)> = std::env::vars_os()
        .filter(|(name, _)| {
            name.to_str().is_some_and(|name| {
                (!holds_a_key(name) || allowed.iter().any(|a| a == name))
                    && !reroutes(name)
                    && (inherit || PLAIN.contains(&name) || name.starts_with("LC_"))
            })
        })
        .collect();
    // A corporate proxy must not be asked for the sidecar.
    for name in ["NO_PROXY", "no_proxy"] {
        let before = env
            .iter()
            .position(|(n, _)| n == name)
            .map(|i| env.remove(i).1);
        let mut value = OsString::from(format!("localhost,127.0.0.1,::1,{sidecar}"));
        if let Some(before) = before.filter(|b| !b.is_empty()) {
            value.push(",");
            value.push(before);
        }
        env.push((name.into(), value));
    }
    env.retain(|(name, _)| !ours.iter().any(|(n, _)| name == n.as_str()));
    env.extend(ours.iter().map(|(n, v)| (n.into(), v.into())));
    env
}
