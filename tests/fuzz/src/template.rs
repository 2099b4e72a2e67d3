//! A hostile chat template, rendered on the host.

use flexserve_template::{Input, Message, TEXT_BYTES_MAX, render};

/// What makes memory grow faster than instructions are counted: `flexserve` renders in a process with limits for that, which a
/// harness cannot. Templates with these are left out.
const GROWING: [&str; 12] =
    ["~", "+", "*", "replace", "join", "indent", "format", "center", "just", "fill", "tojson", "list"];

/// Renders a template, the input up to its first zero byte; the rest is what the user says. It must come back, with an error or a
/// text that is not too long.
pub fn template(data: &[u8]) {
    let end = data.iter().position(|byte| *byte == 0).unwrap_or(data.len());
    let (template, prompt) = data.split_at(end);
    let template = String::from_utf8_lossy(template).into_owned();
    if GROWING.iter().any(|growing| template.contains(growing)) {
        return;
    }
    let message = |role: &str, content: &str| Message { role: role.into(), content: content.into() };
    let input = Input {
        template,
        messages: vec![message("system", "be kind"), message("user", &String::from_utf8_lossy(prompt))],
        bos_token: "<s>".into(),
        eos_token: "</s>".into(),
        enable_thinking: prompt.first().map(|byte| byte % 2 == 0),
    };
    match render(&input) {
        Ok(text) => assert!(text.len() <= TEXT_BYTES_MAX),
        Err(error) => assert!(!error.to_string().contains('\n')),
    }
}
