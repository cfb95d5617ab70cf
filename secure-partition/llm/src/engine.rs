//! From tokens to logits.

use core::ops::Range;

use flexserve_container::{Model, Params, TensorKind};
use flexserve_kernels::activations::{Activations, quantize};
use flexserve_kernels::format::GROUP;
use flexserve_kernels::isa::Isa;
use flexserve_kernels::matmul::{Output, matmul, scale};
use flexserve_kernels::matrix::Matrix;
use flexserve_kernels::vector::Vector;

use crate::attention::{self, Cache, HEAD_DIM_MAX, Query};
use crate::fixed::sigmoid;
use crate::norm::{RESIDUAL_FRAC, rms_norm};
use crate::workers::{Alone, Workers, divide, shared_32, shared_64};
use crate::workspace::{BATCH, Shape, Workspace};
use crate::{Error, rope, weights};

/// Fraction bits of logits, queries, keys, values, gate and up projections.
pub const FRAC: i32 = 16;

/// A model at work: its weights, and the workspace with all its state.
///
/// It can be dropped and made anew at any time; a new one begins at position 0.
#[derive(Debug)]
pub struct Engine<'m, 'w> {
    model: Model<'m>,
    shape: Shape,
    isa: Isa,
    workers: &'w dyn Workers,
    workspace: Workspace<'w>,
    position: usize,
    /// Whether activations are written down twice, as some matrix takes them so.
    twice: bool,
    /// Turns a dot product of query and key into an exponent of 2, Q2.30.
    score_factor: i64,
}

/// Bytes of workspace for a cache of `context` tokens.
#[must_use]
pub fn workspace_bytes(params: &Params, context: usize) -> usize {
    Workspace::bytes(&Shape::new(params, context))
}

impl<'m, 'w> Engine<'m, 'w> {
    /// Sets up a model in `memory` (at least [`workspace_bytes`], aligned to 64 bytes; its contents do not matter).
    ///
    /// # Errors
    /// [`Error::Workspace`], [`Error::Tensor`], [`Error::Context`] if `context` is 0, [`Error::HeadDim`].
    pub fn new(model: Model<'m>, memory: &'w mut [u8], context: usize, isa: Isa) -> Result<Self, Error> {
        let params = model.manifest().params();
        let shape = Shape::new(params, context);
        if context == 0 {
            return Err(Error::Context);
        }
        if shape.head_dim > HEAD_DIM_MAX {
            return Err(Error::HeadDim);
        }
        weights::check(&model)?;
        let workspace = Workspace::new(&shape, memory)?;
        let score_factor = attention::score_factor(shape.head_dim);
        let twice = weights::take_twice(&model);
        Ok(Self { model, shape, isa, workers: &Alone, workspace, position: 0, twice, score_factor })
    }

    /// The same, with help.
    #[must_use]
    pub fn with_workers(self, workers: &'w dyn Workers) -> Self {
        Self { workers, ..self }
    }

    /// Tokens in the cache.
    #[must_use]
    pub const fn position(&self) -> usize {
        self.position
    }

    /// Tokens that the cache can hold.
    #[must_use]
    pub const fn context(&self) -> usize {
        self.shape.context
    }

    /// Forgets every token.
    pub const fn reset(&mut self) {
        self.position = 0;
    }

    /// The logits of the last step, Q15.16, one per token of the vocabulary.
    #[must_use]
    pub const fn logits(&self) -> &[i32] {
        self.workspace.logits
    }

    /// Adds tokens and computes the logits behind the last one.
    ///
    /// # Errors
    /// [`Error::NoTokens`], [`Error::ContextFull`], [`Error::Token`]: nothing was added then.
    pub fn prefill(&mut self, tokens: &[u32]) -> Result<&[i32], Error> {
        self.check(tokens)?;
        for batch in tokens.chunks(BATCH) {
            self.batch(batch)?;
        }
        let last = (tokens.len() - 1) % BATCH;
        self.head(last..last + 1, None)?;
        Ok(self.workspace.logits)
    }

    /// Adds one token and computes the logits behind it.
    ///
    /// # Errors
    /// [`Error::ContextFull`], [`Error::Token`].
    pub fn decode(&mut self, token: u32) -> Result<&[i32], Error> {
        self.prefill(&[token])
    }

    /// Adds tokens and reports the logits behind each of them: `each(index, logits)`. `scratch` holds the logits of a few
    /// tokens at a time, (vocab) each: the more, the faster, up to [`BATCH`].
    ///
    /// # Errors
    /// Those of [`Self::prefill`], and [`Error::Workspace`] if `scratch` is too short for one token.
    pub fn score(
        &mut self,
        tokens: &[u32],
        scratch: &mut [i32],
        mut each: impl FnMut(usize, &[i32]),
    ) -> Result<(), Error> {
        self.check(tokens)?;
        let vocab = self.shape.vocab;
        let at_once = (scratch.len() / vocab).min(BATCH);
        if at_once == 0 {
            return Err(Error::Workspace);
        }
        for (b, batch) in tokens.chunks(BATCH).enumerate() {
            self.batch(batch)?;
            for first in (0..batch.len()).step_by(at_once) {
                let end = batch.len().min(first + at_once);
                self.head(first..end, Some(scratch))?;
                for (t, logits) in (first..end).zip(scratch.chunks_exact(vocab)) {
                    each(b * BATCH + t, logits);
                }
            }
        }
        Ok(())
    }

    fn check(&self, tokens: &[u32]) -> Result<(), Error> {
        if tokens.is_empty() {
            return Err(Error::NoTokens);
        }
        if tokens.len() > self.shape.context - self.position {
            return Err(Error::ContextFull);
        }
        match tokens.iter().find(|&&token| token as usize >= self.shape.vocab) {
            Some(&token) => Err(Error::Token(token)),
            None => Ok(()),
        }
    }

    /// Runs all layers on at most [`BATCH`] tokens that were checked. The residual stream is the result.
    fn batch(&mut self, tokens: &[u32]) -> Result<(), Error> {
        self.embed(tokens)?;
        let steps = self.model.manifest().rope_steps();
        let pairs = self.shape.pairs;
        for (t, table) in self.workspace.rotations.chunks_exact_mut(pairs).take(tokens.len()).enumerate() {
            rope::rotations(steps.iter().map(|step| step.get()), self.position + t, table);
        }
        for layer in 0..self.shape.layers as u32 {
            self.attention(layer, tokens.len())?;
            self.feed_forward(layer, tokens.len())?;
        }
        self.position += tokens.len();
        Ok(())
    }

    /// Starts the residual stream with the tokens' embeddings.
    fn embed(&mut self, tokens: &[u32]) -> Result<(), Error> {
        let embedding = weights::matrix(&self.model, TensorKind::TokenEmbedding, 0)?;
        for (&token, row) in tokens.iter().zip(self.workspace.residual.chunks_exact_mut(self.shape.width)) {
            let shift = embedding.decode_row(token as usize, |c, value| row[c] = value);
            let shift = shift.saturating_sub(RESIDUAL_FRAC);
            row.iter_mut().for_each(|value| *value = scale(*value, shift));
        }
        Ok(())
    }

    /// residual += `W_o` attention(rope(`W_q` x), rope(`W_k` x), `W_v` x), x = norm(residual)
    fn attention(&mut self, layer: u32, tokens: usize) -> Result<(), Error> {
        let matrix = |kind| weights::matrix(&self.model, kind, layer);
        let (q, k, v) = (matrix(TensorKind::AttnQ)?, matrix(TensorKind::AttnK)?, matrix(TensorKind::AttnV)?);
        let output = matrix(TensorKind::AttnOutput)?;
        self.normalize(&weights::vector(&self.model, TensorKind::AttnNorm, layer)?, 0..tokens);
        let (isa, workers, inputs) = (self.isa, self.workers, self.inputs(self.shape.width));
        let workspace = &mut self.workspace;
        let x = activations(isa, workspace.words, workspace.sums, workspace.exponents, tokens, inputs);
        project(isa, workers, &q, &x, workspace.queries);
        project(isa, workers, &k, &x, workspace.keys);
        project(isa, workers, &v, &x, workspace.values);
        self.rotate(tokens);
        for t in 0..tokens {
            self.remember(layer as usize, t);
        }
        for t in 0..tokens {
            self.attend(layer as usize, t, tokens);
        }
        self.add_to_residual(&output, tokens);
        Ok(())
    }

    /// residual += `W_down` (silu(`W_gate` x) * (`W_up` x)), x = norm(residual)
    fn feed_forward(&mut self, layer: u32, tokens: usize) -> Result<(), Error> {
        let matrix = |kind| weights::matrix(&self.model, kind, layer);
        let (gate, up) = (matrix(TensorKind::FfnGate)?, matrix(TensorKind::FfnUp)?);
        let down = matrix(TensorKind::FfnDown)?;
        self.normalize(&weights::vector(&self.model, TensorKind::FfnNorm, layer)?, 0..tokens);
        let (isa, workers, wide) = (self.isa, self.workers, self.shape.feed_forward);
        let inputs = self.inputs(self.shape.width);
        let workspace = &mut self.workspace;
        let x = activations(isa, workspace.words, workspace.sums, workspace.exponents, tokens, inputs);
        project(isa, workers, &gate, &x, workspace.gate);
        project(isa, workers, &up, &x, workspace.up);
        for t in 0..tokens {
            let workspace = &mut self.workspace;
            let gate = &workspace.gate[t * wide..][..wide];
            let up = &workspace.up[t * wide..][..wide];
            for ((out, &gate), &up) in workspace.wide.iter_mut().zip(gate).zip(up) {
                // Q15.16 * Q2.30 >> 30 is a Q15.16 again; its product with another is below 2^62.
                *out = ((i64::from(gate) * sigmoid(gate)) >> 30) * i64::from(up);
            }
            self.store_mantissas(t, tokens, wide, 2 * FRAC);
        }
        self.add_to_residual(&down, tokens);
        Ok(())
    }

    /// Mantissas of norm(residual) of some tokens of the batch.
    fn normalize(&mut self, weight: &Vector, tokens: Range<usize>) {
        let width = self.shape.width;
        let epsilon = self.model.manifest().params().rms_epsilon;
        for (place, t) in tokens.clone().enumerate() {
            let row = &self.workspace.residual[t * width..][..width];
            let frac = rms_norm(row, weight, epsilon, &mut self.workspace.wide[..width]);
            self.store_mantissas(place, tokens.len(), width, frac);
        }
    }

    /// Rounds the first `cols` of `wide` to the mantissas of one of `tokens` tokens.
    fn store_mantissas(&mut self, t: usize, tokens: usize, cols: usize, frac: i32) {
        let inputs = self.inputs(cols);
        let workspace = &mut self.workspace;
        workspace.wide.copy_within(..inputs - cols, cols);
        let (layout, values) = (self.isa.layout(tokens), &workspace.wide[..inputs]);
        workspace.exponents[t] = quantize(layout, t, values, frac, workspace.words, workspace.sums);
    }

    /// Mantissas that stand for `cols` columns.
    const fn inputs(&self, cols: usize) -> usize {
        if self.twice { 2 * cols } else { cols }
    }

    /// residual += W x, x being the mantissas.
    fn add_to_residual(&mut self, weights: &Matrix, tokens: usize) {
        let inputs = self.inputs(weights.cols());
        let workspace = &mut self.workspace;
        let (words, sums) = (&*workspace.words, &*workspace.sums);
        let x = activations(self.isa, words, sums, workspace.exponents, tokens, inputs);
        let output = Output::Add { before: workspace.residual, after: shared_64(workspace.next_residual) };
        multiply(self.isa, self.workers, weights, &x, RESIDUAL_FRAC, output);
        core::mem::swap(&mut workspace.residual, &mut workspace.next_residual);
    }

    /// Rotates the queries and keys of the batch.
    fn rotate(&mut self, tokens: usize) {
        let (shape, workspace) = (&self.shape, &mut self.workspace);
        let tables = workspace.rotations.chunks_exact(shape.pairs);
        let queries = workspace.queries.chunks_exact_mut(shape.queries());
        let keys = workspace.keys.chunks_exact_mut(shape.keys());
        for ((table, queries), keys) in tables.zip(queries).zip(keys).take(tokens) {
            rope::rotate(queries, shape.head_dim, table);
            rope::rotate(keys, shape.head_dim, table);
        }
    }

    /// Puts keys and values of token `t` of the batch into the cache.
    fn remember(&mut self, layer: usize, t: usize) {
        let (shape, workspace) = (&self.shape, &mut self.workspace);
        let dim = shape.head_dim;
        for head in 0..shape.kv_heads {
            let slot = (layer * shape.kv_heads + head) * shape.context + self.position + t;
            let source = (t * shape.kv_heads + head) * dim;
            let store = |from: &[i32], max, cache: &mut [i16], exponents: &mut [i16]| {
                let values = from[source..][..dim].iter().copied();
                exponents[slot] = attention::quantize(values, FRAC, max, &mut cache[slot * dim..][..dim]);
            };
            store(workspace.keys, attention::KEY_MAX, workspace.key_cache, workspace.key_exponents);
            store(workspace.values, attention::VALUE_MAX, workspace.value_cache, workspace.value_exponents);
        }
    }

    /// Attention of token `t` of a batch of `tokens`; its mantissas are the result.
    fn attend(&mut self, layer: usize, t: usize, tokens: usize) {
        let (shape, workspace) = (&self.shape, &mut self.workspace);
        let (dim, positions) = (shape.head_dim, self.position + t + 1);
        for head in 0..shape.heads {
            let kv_head = head / (shape.heads / shape.kv_heads);
            let slot = (layer * shape.kv_heads + kv_head) * shape.context;
            let cache = Cache {
                keys: &workspace.key_cache[slot * dim..][..positions * dim],
                key_exponents: &workspace.key_exponents[slot..][..positions],
                values: &workspace.value_cache[slot * dim..][..positions * dim],
                value_exponents: &workspace.value_exponents[slot..][..positions],
            };
            let mut mantissas = [0; HEAD_DIM_MAX];
            let mantissas = &mut mantissas[..dim];
            let values = workspace.queries[t * shape.queries() + head * dim..][..dim].iter();
            let values = values.map(|&value| attention::scale_query(value, self.score_factor));
            let exponent =
                attention::quantize(values, FRAC + attention::QUERY_FRAC, attention::KEY_MAX, mantissas);
            let query = Query { mantissas, exponent };
            let (scores, weights) = (&mut workspace.scores[..positions], &mut workspace.weights[..positions]);
            attention::attend(query, cache, scores, weights, &mut workspace.wide[head * dim..][..dim]);
        }
        let queries = shape.queries();
        self.store_mantissas(t, tokens, queries, attention::OUT_FRAC);
    }

    /// Logits behind some tokens of the batch, to `out` or, of one token, to the workspace.
    fn head(&mut self, tokens: Range<usize>, out: Option<&mut [i32]>) -> Result<(), Error> {
        let head = weights::head(&self.model)?;
        self.normalize(&weights::vector(&self.model, TensorKind::OutputNorm, 0)?, tokens.clone());
        let (inputs, workspace) = (self.inputs(self.shape.width), &mut self.workspace);
        let (words, sums) = (&*workspace.words, &*workspace.sums);
        let x = activations(self.isa, words, sums, workspace.exponents, tokens.len(), inputs);
        project(self.isa, self.workers, &head, &x, out.unwrap_or(workspace.logits));
        Ok(())
    }
}

/// The mantissas of a batch.
fn activations<'a>(
    isa: Isa,
    words: &'a [i16],
    sums: &'a [i32],
    exponents: &'a [i32],
    tokens: usize,
    cols: usize,
) -> Activations<'a> {
    Activations::new(isa.layout(tokens), words, sums, &exponents[..tokens], cols)
}

/// [`matmul`] of all rows, divided among the workers.
fn multiply(isa: Isa, workers: &dyn Workers, weights: &Matrix, x: &Activations, frac: i32, out: Output) {
    divide(workers, weights.groups(), GROUP * weights.cols() * x.tokens(), |groups| {
        matmul(isa, weights, groups, x, frac, out);
    });
}

/// out (tokens, rows) = W x, in Q15.16, saturated.
fn project(isa: Isa, workers: &dyn Workers, weights: &Matrix, x: &Activations, out: &mut [i32]) {
    multiply(isa, workers, weights, x, FRAC, Output::Store(shared_32(out)));
}
