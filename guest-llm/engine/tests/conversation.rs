//! Conversations: the same tokens, and so the same answers, as if the whole conversation were encoded at once.

mod support;

use flexserve_engine::gguf::Gguf;
use flexserve_engine::{
    ChatTemplate, Conversation, Error, Event, Flow, Limits, Model, Request, Sampling, Session, SessionConfig,
    StopReason, Tokenizer, Turn, generate,
};
use support::reference::{Random, Shape};
use support::{F16, File, Value};

const CHAT_ML: &str =
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}";

/// A random model with this chat template, and these special tokens at the end of its vocabulary.
fn random(template: &str, special: &[&str]) -> File {
    let mut shape = Shape::tiny(&[F16]);
    shape.context = 160;
    let mut file = Random::new(&shape, 11).file;
    let count = support::vocabulary().0.len();
    let (mut texts, scores, mut kinds) = support::vocabulary();
    // In the place of pieces, so that the size of the vocabulary stays that of the tensors.
    for (i, text) in special.iter().enumerate() {
        texts[count - 1 - i] = text.as_bytes().to_vec();
        kinds[count - 1 - i] = 3;
    }
    file.set("tokenizer.ggml.tokens", Value::Strings(texts));
    file.set("tokenizer.ggml.scores", Value::F32s(scores));
    file.set("tokenizer.ggml.token_type", Value::I32s(kinds));
    file.set("tokenizer.ggml.add_space_prefix", Value::Bool(0));
    file.set("tokenizer.chat_template", template);
    file
}

fn chat_ml() -> File {
    random(CHAT_ML, &["<|im_start|>", "<|im_end|>"])
}

fn template(file: &File) -> Option<ChatTemplate> {
    let bytes = file.bytes();
    let gguf = Gguf::parse(&bytes, &Limits::default()).unwrap();
    Tokenizer::load(&gguf, &Limits::default()).unwrap().chat_template()
}

/// Encodes the first turn and a later one; then the text that they stand for.
fn turns_are(file: &File, first: &str, later: &str) {
    let bytes = file.bytes();
    let model = Model::load(&bytes, &Limits::default()).unwrap();
    let tokenizer = model.tokenizer();
    let whole = |text: &str| tokenizer.encode(text, false, true).unwrap();
    let mut expected: Vec<u32> = tokenizer.bos().into_iter().collect();
    expected.extend(whole(first));
    assert_eq!(tokenizer.encode_turn(&Turn::new("the", true)).unwrap().0, expected);
    assert_eq!(tokenizer.encode_turn(&Turn::new("the", false)).unwrap().0, whole(later));
}

#[test]
fn templates_are_recognised_and_written() {
    let ml = ["<|im_start|>", "<|im_end|>"];
    let file = random(CHAT_ML, &ml);
    assert_eq!(template(&file), Some(ChatTemplate::ChatMl));
    turns_are(
        &file,
        "<|im_start|>user\nthe<|im_end|>\n<|im_start|>assistant\n",
        "<|im_end|>\n<|im_start|>user\nthe<|im_end|>\n<|im_start|>assistant\n",
    );
    let llama3 = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"];
    let file = random("<|start_header_id|>{{ role }}<|end_header_id|>", &llama3);
    assert_eq!(template(&file), Some(ChatTemplate::Llama3));
    let turn = "<|start_header_id|>user<|end_header_id|>\n\nthe<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n";
    turns_are(&file, turn, &format!("<|eot_id|>{turn}"));
    let file = random("[INST] <<SYS>> {{ content }} [/INST]", &[]);
    assert_eq!(template(&file), Some(ChatTemplate::Llama2));
    turns_are(&file, "[INST] the [/INST]", "</s><s>[INST] the [/INST]");
}

const QWEN3: &str = "<|im_start|>{% if enable_thinking is false %}<think>\n\n</think>{% endif %}";
const THINKING: &str = "{{ '<|im_start|>assistant\\n<think>\\n' }}";
const ML: [&str; 2] = ["<|im_start|>", "<|im_end|>"];

/// Encodes a turn; then the text that it stands for, and that before the thought.
fn turn_is(file: &File, turn: &Turn<'_>, expected: &str, thought: &str) {
    let bytes = file.bytes();
    let model = Model::load(&bytes, &Limits::default()).unwrap();
    let tokenizer = model.tokenizer();
    let (tokens, before) = tokenizer.encode_turn(turn).unwrap();
    let mut whole: Vec<u32> = tokenizer.bos().into_iter().filter(|_| turn.is_first).collect();
    whole.extend(tokenizer.encode(expected, false, true).unwrap());
    assert_eq!(tokens[..before], whole, "{turn:?}");
    assert_eq!(tokens[before..], tokenizer.encode(thought, false, true).unwrap(), "{turn:?}");
}

#[test]
fn thoughts_are_asked_for_or_not() {
    let file = random(QWEN3, &ML);
    assert_eq!(template(&file), Some(ChatTemplate::Qwen3));
    let turn = |think, thoughtless| Turn { think, thoughtless, ..Turn::new("the", true) };
    let text = "<|im_start|>user\nthe<|im_end|>\n<|im_start|>assistant\n";
    let empty = "<think>\n\n</think>\n\n";
    turn_is(&file, &turn(None, false), text, "");
    turn_is(&file, &turn(Some(true), false), text, "");
    turn_is(&file, &turn(Some(false), false), text, empty);
    turn_is(&file, &turn(None, true), text, empty);
    let always = random(THINKING, &ML);
    assert_eq!(template(&always), Some(ChatTemplate::Qwen3Thinking));
    turn_is(&always, &turn(None, false), text, "<think>\n");
    turn_is(&always, &turn(None, true), text, empty);
    let refused = |file: &File, turn: &Turn<'_>| {
        let bytes = file.bytes();
        let model = Model::load(&bytes, &Limits::default()).unwrap();
        matches!(model.tokenizer().encode_turn(turn), Err(Error::Parameter { name: "think", .. }))
    };
    assert!(refused(&always, &turn(Some(false), false)) && refused(&always, &turn(Some(true), true)));
    assert!(refused(&chat_ml(), &turn(Some(true), false)) && refused(&file, &turn(Some(true), true)));
    assert!(!refused(&chat_ml(), &turn(Some(false), false)));
}

#[test]
fn the_system_text_comes_first_and_once() {
    let with = |system| Turn { system: Some(system), ..Turn::new("the", true) };
    let later = Turn { is_first: false, ..with("ab") };
    let ml = "<|im_start|>user\nthe<|im_end|>\n<|im_start|>assistant\n";
    let file = chat_ml();
    turn_is(&file, &with("ab"), &format!("<|im_start|>system\nab<|im_end|>\n{ml}"), "");
    turn_is(&file, &with(""), ml, "");
    turn_is(&file, &later, &format!("<|im_end|>\n{ml}"), "");
    let qwen2 = random("{{ '<|im_start|>system\\nBe a b.<|im_end|>\\n' }}<|im_start|>", &ML);
    turn_is(&qwen2, &Turn::new("the", true), &format!("<|im_start|>system\nBe a b.<|im_end|>\n{ml}"), "");
    turn_is(&qwen2, &with("ab"), &format!("<|im_start|>system\nab<|im_end|>\n{ml}"), "");
    turn_is(&qwen2, &with(""), ml, "");
    // Put together from variables: nothing is known.
    let made =
        random("{{ '<|im_start|>system\\n' + s + '<|im_end|>' }}<|im_start|>system\n{{ s }}<|im_end|>", &ML);
    turn_is(&made, &Turn::new("the", true), ml, "");

    let llama3 = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"];
    let user = "<|start_header_id|>user<|end_header_id|>\n\nthe<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n";
    let system = "<|start_header_id|>system<|end_header_id|>\n\n";
    let file = random("<|start_header_id|><|end_header_id|>", &llama3);
    turn_is(&file, &with(" ab\n"), &format!("{system}ab<|eot_id|>{user}"), "");
    let newer =
        random("<|start_header_id|><|end_header_id|>Cutting Knowledge Date: December 2023\\n", &llama3);
    let preamble = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n";
    turn_is(&newer, &Turn::new("the", true), &format!("{system}{preamble}<|eot_id|>{user}"), "");
    turn_is(&newer, &with("ab"), &format!("{system}{preamble}ab<|eot_id|>{user}"), "");

    let file = random("[INST] <<SYS>> {{ content }} [/INST]", &[]);
    turn_is(&file, &with("ab"), "[INST] <<SYS>>\nab\n<</SYS>>\n\nthe [/INST]", "");
    // Marks in the system text stay text.
    let bytes = chat_ml().bytes();
    let model = Model::load(&bytes, &Limits::default()).unwrap();
    let tokenizer = model.tokenizer();
    let end = tokenizer.encode("<|im_end|>", false, true).unwrap()[0];
    let (tokens, _) = tokenizer.encode_turn(&with("<|im_end|>")).unwrap();
    assert_eq!(tokens.iter().filter(|token| **token == end).count(), 2);
}

/// Hot enough that tokens do not repeat.
fn hot() -> Sampling {
    Sampling { temperature: 50.0, top_k: 0, top_p: 1.0, min_p: 0.0, seed: 3, ..Sampling::default() }
}

/// A model that always thinks, whose thought ends with its third token.
fn thinker() -> (File, Vec<u32>) {
    let mut file = random(THINKING, &ML);
    let bytes = file.bytes();
    let model = Model::load(&bytes, &Limits::default()).unwrap();
    let mut session = Session::new(&model, &SessionConfig::for_model(&model)).unwrap();
    let (turn, _) = model.tokenizer().encode_turn(&Turn::new("the", true)).unwrap();
    session.prefill(&turn, &mut |_, _| Flow::Continue).unwrap();
    let mut sampler = flexserve_engine::Sampler::new(&hot(), session.logits().len()).unwrap();
    let mut tokens = Vec::new();
    for _ in 0..8 {
        let token = sampler.sample(session.logits()).unwrap();
        session.decode(token).unwrap();
        tokens.push(token);
    }
    let (mut texts, _, mut kinds) = support::vocabulary();
    let count = texts.len();
    for (i, text) in ML.iter().enumerate() {
        (texts[count - 1 - i], kinds[count - 1 - i]) = (text.as_bytes().to_vec(), 3);
    }
    let end = tokens[2] as usize;
    assert!(!tokens[..2].contains(&tokens[2]) && !turn.contains(&tokens[2]), "another seed: {tokens:?}");
    (texts[end], kinds[end]) = (b"</think>".to_vec(), 4);
    file.set("tokenizer.ggml.tokens", Value::Strings(texts));
    file.set("tokenizer.ggml.token_type", Value::I32s(kinds));
    (file, tokens)
}

#[test]
fn thoughts_are_told_apart_and_are_no_part_of_the_history() {
    let (file, expected) = thinker();
    let bytes = file.bytes();
    let model = Model::load(&bytes, &Limits::default()).unwrap();
    let config = SessionConfig { context: 160, ..SessionConfig::for_model(&model) };
    let mut session = Session::new(&model, &config).unwrap();
    let mut conversation = Conversation::new();
    let (mut thought, mut text) = (String::new(), String::new());
    let report = conversation
        .answer(&mut session, &Request { sampling: hot(), ..request("the", 6) }, &mut |event| {
            match event {
                Event::Thought(piece) => {
                    assert!(text.is_empty());
                    thought.push_str(piece);
                }
                Event::Text(piece) => text.push_str(piece),
                _ => {}
            }
            Flow::Continue
        })
        .unwrap();
    assert_eq!(report.tokens, 6);
    let spelled = |tokens: &[u32]| {
        let mut detokenizer = flexserve_engine::Detokenizer::new(model.tokenizer());
        let pieces: Vec<String> = tokens.iter().map(|t| detokenizer.push(*t).unwrap().to_owned()).collect();
        pieces.concat() + detokenizer.finish()
    };
    assert_eq!(thought.trim(), spelled(&expected[..2]).trim());
    assert!(text.starts_with(spelled(&expected[3..6]).trim_start()), "{text:?}");
    assert!(!(thought.clone() + &text).contains("think>"));

    // The next turn, after a stop and a turn that fails.
    let mut stopped = 0;
    conversation
        .answer(&mut session, &request("ab", 3), &mut |_| {
            stopped += 1;
            Flow::Stop
        })
        .unwrap();
    let full = conversation.answer(&mut session, &request(&"b".repeat(400), 3), &mut |_| Flow::Continue);
    assert!(stopped == 1 && matches!(full, Err(Error::ContextFull { .. })), "{full:?}");
    conversation.answer(&mut session, &request("ab", 0), &mut |_| Flow::Continue).unwrap();

    let (first, before) = model.tokenizer().encode_turn(&Turn::new("the", true)).unwrap();
    let (second, _) = model.tokenizer().encode_turn(&Turn::new("ab", false)).unwrap();
    let history = [&first[..before], &expected[3..6], &second].concat();
    let mut fresh = Session::new(&model, &config).unwrap();
    fresh.prefill(&history, &mut |_, _| Flow::Continue).unwrap();
    assert_eq!(session.position(), history.len());
    assert_eq!(session.logits(), fresh.logits());
}

#[test]
fn a_single_request_uses_the_chat_template_too() {
    let bytes = chat_ml().bytes();
    let model = Model::load(&bytes, &Limits::default()).unwrap();
    let mut session = Session::new(&model, &SessionConfig::for_model(&model)).unwrap();
    let mut ask = |request: &Request<'_>| {
        let mut text = String::new();
        let report = generate(&mut session, request, &mut |event| {
            if let Event::Text(piece) = event {
                text.push_str(piece);
            }
            Flow::Continue
        });
        report.map(|report| (report.prompt_tokens, text))
    };
    let turn = model.tokenizer().encode_turn(&Turn::new("the", true)).unwrap().0;
    assert_eq!(ask(&request("the", 4)).unwrap().0, turn.len());
    let told = Request { system: Some("ab"), ..request("the", 4) };
    assert!(ask(&told).unwrap().0 > turn.len());
    assert!(ask(&Request { raw: true, ..request("the", 4) }).unwrap().0 < turn.len());
    for wrong in
        [Request { raw: true, ..told }, Request { raw: true, think: Some(true), ..request("the", 4) }]
    {
        assert!(matches!(ask(&wrong), Err(Error::Parameter { .. })));
    }
}

#[test]
fn a_template_whose_marks_a_user_could_spell_is_not_known() {
    assert_eq!(template(&random(CHAT_ML, &["<|im_start|>"])), None);
    assert_eq!(template(&random("{{ content }}", &["<|im_start|>", "<|im_end|>"])), None);
    assert_eq!(template(&random("<|start_header_id|><|end_header_id|>", &["<|start_header_id|>"])), None);
}

#[test]
fn marks_in_a_prompt_stay_text() {
    let bytes = chat_ml().bytes();
    let model = Model::load(&bytes, &Limits::default()).unwrap();
    let tokenizer = model.tokenizer();
    let tokens = tokenizer.encode_turn(&Turn::new("<|im_end|>", false)).unwrap().0;
    let end = tokenizer.encode("<|im_end|>", false, true).unwrap()[0];
    assert_eq!(tokens.iter().filter(|token| **token == end).count(), 2, "{tokens:?}");
}

fn request(prompt: &str, max_tokens: usize) -> Request<'_> {
    Request { max_tokens, ..Request::new(prompt) }
}

fn answer(
    conversation: &mut Conversation,
    session: &mut Session<'_>,
    request: &Request<'_>,
) -> Result<(String, StopReason), Error> {
    let mut text = String::new();
    let report = conversation.answer(session, request, &mut |event| {
        if let Event::Text(piece) = event {
            text.push_str(piece);
        }
        Flow::Continue
    })?;
    Ok((text, report.stop))
}

fn with_session(context: usize, act: impl FnOnce(&mut Session<'_>)) {
    let bytes = chat_ml().bytes();
    let model = Model::load(&bytes, &Limits::default()).unwrap();
    let config = SessionConfig { context, ..SessionConfig::for_model(&model) };
    act(&mut Session::new(&model, &config).unwrap());
}

/// What a model that sees the whole conversation says: logits are bit-identical, so the answers are.
#[test]
fn earlier_turns_are_seen_and_not_computed_again() {
    with_session(160, |session| {
        let mut conversation = Conversation::new();
        let mut reports = Vec::new();
        let mut tokens: Vec<u32> = Vec::new();
        for (turn, prompt) in ["the b", "ab", "the"].into_iter().enumerate() {
            let tokenizer = session.model().tokenizer();
            tokens.extend(tokenizer.encode_turn(&Turn::new(prompt, turn == 0)).unwrap().0);
            // A fresh context gets all of it.
            let config = SessionConfig { context: 160, ..SessionConfig::for_model(session.model()) };
            let mut fresh = Session::new(session.model(), &config).unwrap();
            fresh.prefill(&tokens, &mut |_, _| Flow::Continue).unwrap();

            let before = session.position();
            let report = conversation.answer(session, &request(prompt, 4), &mut |event| {
                if let Event::Prefilled { tokens } = event {
                    assert!(tokens < 45, "history was computed again: {tokens}");
                }
                Flow::Continue
            });
            let report = report.unwrap();
            reports.push(report);
            let mut sampler =
                flexserve_engine::Sampler::new(&Sampling::default(), fresh.logits().len()).unwrap();
            for _ in 0..report.tokens {
                let token = sampler.sample(fresh.logits()).unwrap();
                fresh.decode(token).unwrap();
                tokens.push(token);
            }
            // All but the last token of the answer, which comes with the next turn.
            assert_eq!(session.position(), tokens.len() - 1);
            assert!(before < session.position());
        }
        assert!(reports.iter().all(|report| report.tokens == 4), "{reports:?}");
        // The last token is appended with the next turn; then both contexts are the same.
        let mut fresh_tokens = tokens.clone();
        fresh_tokens.extend(session.model().tokenizer().encode_turn(&Turn::new("a", false)).unwrap().0);
        let config = SessionConfig { context: 160, ..SessionConfig::for_model(session.model()) };
        let mut fresh = Session::new(session.model(), &config).unwrap();
        fresh.prefill(&fresh_tokens, &mut |_, _| Flow::Continue).unwrap();
        conversation.answer(session, &request("a", 0), &mut |_| Flow::Continue).unwrap();
        assert_eq!(session.position(), fresh_tokens.len());
        assert_eq!(session.logits(), fresh.logits());
    });
}

#[test]
fn a_turn_that_fails_or_is_stopped_early_never_was() {
    with_session(64, |session| {
        let mut conversation = Conversation::new();
        let (first, _) = answer(&mut conversation, session, &request("the", 3)).unwrap();
        let position = session.position();
        let full = answer(&mut conversation, session, &request(&"b".repeat(40), 3));
        assert!(matches!(full, Err(Error::ContextFull { left, .. }) if left == 64 - position), "{full:?}");
        for stop_at in 0..2 {
            let mut count = 0;
            let report = conversation.answer(session, &request("ab", 3), &mut |_| {
                count += 1;
                if count > stop_at { Flow::Stop } else { Flow::Continue }
            });
            assert_eq!(report.unwrap().stop, StopReason::Cancelled);
            assert_eq!(session.position(), position);
        }
        let hot = Request {
            sampling: Sampling { temperature: f32::NAN, ..Sampling::default() },
            ..request("ab", 3)
        };
        assert!(answer(&mut conversation, session, &hot).is_err());
        let (second, _) = answer(&mut conversation, session, &request("ab", 3)).unwrap();

        let mut again = Conversation::new();
        assert!(again.is_empty());
        // The other use of the session makes it start anew.
        generate(session, &request("the", 5), &mut |_| Flow::Continue).unwrap();
        assert_eq!(answer(&mut again, session, &request("the", 3)).unwrap().0, first);
        assert_eq!(answer(&mut again, session, &request("ab", 3)).unwrap().0, second);
    });
}

#[test]
fn a_stopped_answer_stays_as_far_as_it_went() {
    with_session(160, |session| {
        let mut conversation = Conversation::new();
        let mut pieces = 0;
        let report = conversation.answer(session, &request("the", 20), &mut |event| {
            pieces += usize::from(matches!(event, Event::Text(_)));
            if pieces == 2 { Flow::Stop } else { Flow::Continue }
        });
        let report = report.unwrap();
        assert_eq!(report.stop, StopReason::Cancelled);
        assert_eq!(session.position(), report.prompt_tokens + report.tokens - 1);
        assert!(answer(&mut conversation, session, &request("b", 2)).is_ok());
    });
}

#[test]
fn without_a_template_there_is_no_conversation() {
    let bytes = Random::new(&Shape::tiny(&[F16]), 5).file.bytes();
    let model = Model::load(&bytes, &Limits::default()).unwrap();
    let mut session = Session::new(&model, &SessionConfig::for_model(&model)).unwrap();
    let error = answer(&mut Conversation::new(), &mut session, &request("the", 1)).unwrap_err();
    assert!(matches!(error, Error::Parameter { name: "chat", .. }), "{error}");
    with_session(32, |session| {
        let error = answer(&mut Conversation::new(), session, &request("", 1)).unwrap_err();
        assert_eq!(error, Error::EmptyPrompt);
    });
}
