//! Layers as steps for an accelerator: what [`super::Session::attend`] and [`super::Session::feed_forward`] compute, without
//! overwriting anything that is read, so that a layer can be begun anew. States go round three buffers, so that it can be
//! although the next has begun.

use alloc::vec::Vec;

use zerocopy::IntoBytes;

use super::{Operation, Session, SessionConfig};
use crate::budget::Budget;
use crate::kv::CHUNK_TOKENS;
use crate::model::{Layer, Linear};
use crate::offload::{Place, Step};
use crate::{Model, Result};

const STATE: usize = 0;
const NORMED: usize = 1;
const QUERIES: usize = 2;
const KEYS: usize = 3;
const VALUES: usize = 4;
const ATTENDED: usize = 5;
const GATE: usize = 6;
const UP: usize = 7;
const SPARE: usize = 8;
const MIDDLE: usize = 9;
const NEXT: usize = 10;
const CACHE: usize = 11;
const TABLE: usize = 12;
const ROTATIONS: usize = 13;
const AFTER: usize = 14;
/// Where the states before and after each layer are, in turn.
const STATES: [usize; 3] = [STATE, NEXT, AFTER];

/// Steps of a layer beside those that store keys and values.
const STEPS: usize = 20;

/// Steps of all layers, and where each layer's end.
#[derive(Debug)]
pub struct Plan<'m> {
    steps: Vec<Step<'m>>,
    ends: Vec<usize>,
}

/// Most steps, and layers; none without an accelerator.
fn sizes(model: &Model<'_>, config: &SessionConfig) -> Option<(usize, usize)> {
    let layers = if config.offload > 0 { model.hyperparameters().block_count } else { 0 };
    let steps = 2 * (config.rows() / CHUNK_TOKENS + 2) + STEPS;
    Some((steps.checked_mul(layers)?, layers))
}

impl Plan<'_> {
    /// Bytes that [`Plan::new`] allocates.
    pub fn required_bytes(model: &Model<'_>, config: &SessionConfig) -> Option<usize> {
        let (steps, layers) = sizes(model, config)?;
        steps.checked_mul(size_of::<Step<'_>>())?.checked_add(layers.checked_mul(size_of::<usize>())?)
    }

    /// Allocates.
    pub fn new(model: &Model<'_>, config: &SessionConfig, budget: &mut Budget) -> Result<Self> {
        let (steps, layers) = sizes(model, config).unwrap_or_default();
        Ok(Plan { steps: budget.reserve(steps)?, ends: budget.reserve(layers)? })
    }
}

/// Rows of `length` floats in a buffer, from row `first` on.
fn rows(buffer: usize, first: usize, length: usize) -> Place {
    let stride = length * size_of::<f32>();
    Place { buffer, offset: first * stride, stride }
}

/// Steps without allocation: what does not fit is noticed.
struct List<'l, 's> {
    steps: &'l mut Vec<Step<'s>>,
    fits: bool,
}

impl<'s> List<'_, 's> {
    fn push(&mut self, step: Step<'s>) {
        if self.steps.len() < self.steps.capacity() {
            self.steps.push(step);
        } else {
            self.fits = false;
        }
    }

    fn multiply(&mut self, linear: &'s Linear<'s>, tokens: usize, input: Place, output: Place) {
        let matrix = &linear.matrix;
        self.push(Step::Multiply {
            ty: matrix.ty(),
            matrix: matrix.data(),
            rows: matrix.rows(),
            columns: input.stride / size_of::<f32>(),
            tokens,
            bias: linear.bias,
            input,
            output,
        });
    }
}

impl<'m> Session<'m> {
    /// Has the accelerator do layers for the tokens of a batch; after the last one the states are wanted from token
    /// `first_of_last` on. Returns how many it did.
    pub(super) fn offload_layers(&mut self, count: usize, first_of_last: usize) -> usize {
        if self.config.offload == 0 {
            return 0;
        }
        let Plan { mut steps, mut ends } =
            core::mem::replace(&mut self.plan, Plan { steps: Vec::new(), ends: Vec::new() });
        steps.clear();
        ends.clear();
        let mut list = List { steps: &mut steps, fits: true };
        let layers = &self.model.weights().layers;
        for (index, layer) in layers.iter().enumerate() {
            let first = if index + 1 == layers.len() { first_of_last } else { 0 };
            let [from, to] = [index, index + 1].map(|index| STATES[index % STATES.len()]);
            self.attention_steps(&mut list, index, layer, (count, first), from);
            if first < count {
                self.feed_forward_steps(&mut list, layer, (count, first), to);
            }
            if !list.fits {
                break; // The layers before it are whole.
            }
            ends.push(list.steps.len());
        }
        let s = &mut self.scratch;
        let (memory, table) = self.kv.memory();
        let mut buffers = [
            s.state.as_mut_bytes(),
            s.normed.as_mut_bytes(),
            s.queries.as_mut_bytes(),
            s.keys.as_mut_bytes(),
            s.values.as_mut_bytes(),
            s.attended.as_mut_bytes(),
            s.gate.as_mut_bytes(),
            s.up.as_mut_bytes(),
            s.spare.as_mut_bytes(),
            s.middle.as_mut_bytes(),
            s.next.as_mut_bytes(),
            memory,
            table.as_mut_bytes(),
            self.rope.all().as_mut_bytes(),
            s.after.as_mut_bytes(),
        ];
        let done = self.offload.run(&mut buffers, &steps, &ends).min(ends.len());
        self.plan = Plan { steps, ends };
        match STATES[done % STATES.len()] {
            NEXT => core::mem::swap(&mut s.state, &mut s.next),
            AFTER => core::mem::swap(&mut s.state, &mut s.after),
            _ => {}
        }
        self.profiler.end(Operation::Offload);
        done
    }

    fn attention_steps(
        &self,
        list: &mut List<'_, 'm>,
        index: usize,
        layer: &'m Layer<'m>,
        (count, first): (usize, usize),
        from: usize,
    ) {
        let h = self.model.hyperparameters();
        let (width, position, tokens) = (h.embedding_length, self.tokens.len(), count - first);
        let shape = *self.kv.shape();
        let epsilon = h.rms_epsilon;
        list.push(Step::Normalise {
            weight: layer.attention_norm,
            epsilon,
            columns: width,
            rows: count,
            input: rows(from, 0, width),
            output: rows(NORMED, 0, width),
        });
        let (keys_length, query_length, values_length) =
            (h.keys_length(), h.query_length(), h.values_length());
        list.multiply(&layer.key, count, rows(NORMED, 0, width), rows(KEYS, 0, keys_length));
        list.multiply(&layer.value, count, rows(NORMED, 0, width), rows(VALUES, 0, values_length));
        if tokens > 0 {
            list.multiply(&layer.query, tokens, rows(NORMED, first, width), rows(QUERIES, 0, query_length));
        }
        // Keys go to and fro between their buffer and the spare one's start, queries and its part behind the batch's keys.
        let spare_queries = Place {
            buffer: SPARE,
            offset: self.config.rows() * keys_length * size_of::<f32>(),
            ..rows(SPARE, 0, query_length)
        };
        let mut keys = [rows(KEYS, 0, keys_length), rows(SPARE, 0, keys_length)];
        let mut queries = [rows(QUERIES, 0, query_length), spare_queries];
        let (pairs, halves) = self.rope.pairs();
        for (places, norm, length, first, tokens) in [
            (&mut keys, layer.key_norm, keys_length, 0, count),
            (&mut queries, layer.query_norm, query_length, first, tokens),
        ] {
            if tokens == 0 {
                continue;
            }
            let heads = length / h.key_length.max(1);
            if let Some(weight) = norm {
                let stride = h.key_length * size_of::<f32>();
                list.push(Step::Normalise {
                    weight,
                    epsilon,
                    columns: h.key_length,
                    rows: tokens * heads,
                    input: Place { stride, ..places[0] },
                    output: Place { stride, ..places[1] },
                });
                places.swap(0, 1);
            }
            if pairs > 0 {
                list.push(Step::Rotate {
                    pairs,
                    halves,
                    heads,
                    columns: h.key_length,
                    tokens,
                    input: places[0],
                    rotations: rows(ROTATIONS, first, 2 * pairs),
                    output: places[1],
                });
                places.swap(0, 1);
            }
        }
        let mut done = 0;
        while done < count {
            let tokens = (count - done).min(CHUNK_TOKENS - (position + done) % CHUNK_TOKENS);
            let Some(places) = self.kv.places(index, position + done) else {
                list.fits = false;
                return;
            };
            let sources = [(keys[0], h.key_length), (rows(VALUES, 0, values_length), h.value_length)];
            for ((source, columns), (offset, stride)) in sources.into_iter().zip(places) {
                list.push(Step::Store {
                    format: shape.format,
                    heads: shape.heads,
                    columns,
                    tokens,
                    input: Place { offset: source.offset + done * source.stride, ..source },
                    output: Place { buffer: CACHE, offset, stride },
                });
            }
            done += tokens;
        }
        if tokens == 0 {
            return;
        }
        let attention_length = h.attention_length();
        list.push(Step::Attend {
            format: shape.format,
            kv_heads: shape.heads,
            heads: query_length / h.key_length.max(1),
            key_length: h.key_length,
            value_length: h.value_length,
            tokens,
            visible: position + first + 1,
            cache: Place {
                buffer: CACHE,
                offset: self.kv.layer_offset(index),
                stride: self.kv.block_bytes(),
            },
            table: Place { buffer: TABLE, offset: 0, stride: 0 },
            input: queries[0],
            output: rows(ATTENDED, 0, attention_length),
        });
        list.multiply(
            &layer.attention_output,
            tokens,
            rows(ATTENDED, 0, attention_length),
            rows(NORMED, 0, width),
        );
        list.push(Step::Add {
            columns: width,
            rows: tokens,
            input: rows(from, first, width),
            second: rows(NORMED, 0, width),
            output: rows(MIDDLE, first, width),
        });
    }

    fn feed_forward_steps(
        &self,
        list: &mut List<'_, 'm>,
        layer: &'m Layer<'m>,
        (count, first): (usize, usize),
        to: usize,
    ) {
        let h = self.model.hyperparameters();
        let (width, hidden, tokens) = (h.embedding_length, h.feed_forward_length, count - first);
        list.push(Step::Normalise {
            weight: layer.feed_forward_norm,
            epsilon: h.rms_epsilon,
            columns: width,
            rows: tokens,
            input: rows(MIDDLE, first, width),
            output: rows(NORMED, 0, width),
        });
        list.multiply(&layer.gate, tokens, rows(NORMED, 0, width), rows(GATE, 0, hidden));
        list.multiply(&layer.up, tokens, rows(NORMED, 0, width), rows(UP, 0, hidden));
        list.push(Step::Activate {
            columns: hidden,
            rows: tokens,
            gate: rows(GATE, 0, hidden),
            up: rows(UP, 0, hidden),
            output: rows(SPARE, 0, hidden),
        });
        list.multiply(&layer.down, tokens, rows(SPARE, 0, hidden), rows(NORMED, 0, width));
        list.push(Step::Add {
            columns: width,
            rows: tokens,
            input: rows(MIDDLE, first, width),
            second: rows(NORMED, 0, width),
            output: rows(to, first, width),
        });
    }
}
