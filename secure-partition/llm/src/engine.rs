//! From tokens to logits.

use core::ops::Range;
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};

use flexserve_container::{Manifest, Model, TensorKind};
use flexserve_kernels::activations::{Activations, Buffers, Precision, Writer};
use flexserve_kernels::attention::{self, CONTEXT_MAX, Cache, OUT_FRAC, Scratch, attend};
use flexserve_kernels::cache::{Layout, Rows, RowsMut};
use flexserve_kernels::isa::Isa;
use flexserve_kernels::matmul::{Output, scale};
use flexserve_kernels::matrix::{Matrix, ShapeError};
use flexserve_kernels::narrow::narrow;
use flexserve_kernels::norm::rms_norm;
use flexserve_kernels::rope::rotate;
use flexserve_kernels::silu::silu;
use flexserve_kernels::vector::Vector;

use crate::products::{multiply, project};
use crate::workers::{Alone, Workers, divide, shared_64};
use crate::workspace::{BATCH, Shape, Workspace};
use crate::{Error, rope, weights};

/// Fraction bits of logits, queries, keys, values, gate and up projections.
pub const FRAC: i32 = flexserve_kernels::silu::FRAC;
/// Fraction bits of the residual stream, an i64: models have outliers of 2^15, and values that matter below 2^-10.
const RESIDUAL_FRAC: i32 = 24;

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
    /// Of keys and values.
    layout: Layout,
}

/// Bytes of workspace for a cache of `context` tokens.
#[must_use]
pub fn workspace_bytes(manifest: &Manifest, context: usize) -> usize {
    Workspace::bytes(&Shape::new(manifest, context))
}

impl<'m, 'w> Engine<'m, 'w> {
    /// Sets up a model in `memory` (at least [`workspace_bytes`], aligned to 64 bytes; its contents do not matter).
    ///
    /// # Errors
    /// [`Error::Workspace`], [`Error::Tensor`], [`Error::Context`] if `context` is 0 or over [`CONTEXT_MAX`], [`Error::HeadDim`].
    pub fn new(model: Model<'m>, memory: &'w mut [u8], context: usize, isa: Isa) -> Result<Self, Error> {
        if context == 0 || context > CONTEXT_MAX {
            return Err(Error::Context);
        }
        let shape = Shape::new(model.manifest(), context);
        let layout = shape.layout().map_err(|ShapeError| Error::HeadDim)?;
        weights::check(&model)?;
        let workspace = Workspace::new(&shape, memory)?;
        Ok(Self { model, shape, isa, workers: &Alone, workspace, position: 0, layout })
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
        self.with_buffers(|engine, buffers| {
            for layer in 0..engine.shape.layers as u32 {
                engine.attention(buffers, layer, tokens.len())?;
                engine.feed_forward(buffers, layer, tokens.len())?;
            }
            Ok(())
        })?;
        self.position += tokens.len();
        Ok(())
    }

    /// Calls `f` with the room for activations apart from the rest, so that both can be borrowed.
    fn with_buffers(
        &mut self,
        f: impl FnOnce(&mut Self, &mut Buffers<'w>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut buffers = core::mem::take(&mut self.workspace.activations);
        let result = f(self, &mut buffers);
        self.workspace.activations = buffers;
        result
    }

    /// Starts the residual stream with the tokens' embeddings.
    fn embed(&mut self, tokens: &[u32]) -> Result<(), Error> {
        let embedding = weights::matrix(&self.model, TensorKind::TokenEmbedding, 0)?;
        for (&token, row) in tokens.iter().zip(self.workspace.residual.chunks_exact_mut(self.shape.width)) {
            let shift = embedding.decode_row(token as usize, |c, value| row[c] = value)?;
            let shift = shift.saturating_sub(RESIDUAL_FRAC);
            row.iter_mut().for_each(|value| *value = scale(*value, shift));
        }
        Ok(())
    }

    /// residual += `W_o` attention(rope(`W_q` x), rope(`W_k` x), `W_v` x), x = norm(residual)
    fn attention(&mut self, buffers: &mut Buffers<'w>, layer: u32, tokens: usize) -> Result<(), Error> {
        let matrix = |kind| weights::matrix(&self.model, kind, layer);
        let (q, k, v) = (matrix(TensorKind::AttnQ)?, matrix(TensorKind::AttnK)?, matrix(TensorKind::AttnV)?);
        let output = matrix(TensorKind::AttnOutput)?;
        let norm = weights::vector(&self.model, TensorKind::AttnNorm, layer)?;
        let x = self.normalize(buffers, &norm, 0..tokens, Precision::Outliers)?;
        let (isa, workers, workspace) = (self.isa, self.workers, &mut self.workspace);
        project(
            isa,
            workers,
            &x,
            [(&q, &mut *workspace.queries), (&k, &mut *workspace.keys), (&v, &mut *workspace.values)],
        )?;
        self.rotate(tokens)?;
        for t in 0..tokens {
            self.remember(layer as usize, t)?;
        }
        let columns = self.shape.queries();
        let mut writer = buffers.writer(isa, tokens, self.inputs(columns))?;
        self.attend(layer as usize, tokens)?;
        for t in 0..tokens {
            let workspace = &mut self.workspace;
            let shift = narrow(
                self.isa,
                &workspace.next_residual[t * columns..][..columns],
                &mut workspace.inputs[..columns],
            )?;
            self.put(&mut writer, columns, OUT_FRAC - shift, Precision::Octets)?;
        }
        self.add_to_residual(&output, &writer.finish()?)
    }

    /// residual += `W_down` (silu(`W_gate` x) * (`W_up` x)), x = norm(residual)
    fn feed_forward(&mut self, buffers: &mut Buffers<'w>, layer: u32, tokens: usize) -> Result<(), Error> {
        let matrix = |kind| weights::matrix(&self.model, kind, layer);
        let (gate, up) = (matrix(TensorKind::FfnGate)?, matrix(TensorKind::FfnUp)?);
        let down = matrix(TensorKind::FfnDown)?;
        let norm = weights::vector(&self.model, TensorKind::FfnNorm, layer)?;
        let x = self.normalize(buffers, &norm, 0..tokens, Precision::Outliers)?;
        let (isa, workers, wide) = (self.isa, self.workers, self.shape.feed_forward);
        let workspace = &mut self.workspace;
        project(isa, workers, &x, [(&gate, &mut *workspace.gate), (&up, &mut *workspace.up)])?;
        let mut writer = buffers.writer(isa, tokens, self.inputs(wide))?;
        for t in 0..tokens {
            let workspace = &mut self.workspace;
            let gate = &workspace.gate[t * wide..][..wide];
            let up = &workspace.up[t * wide..][..wide];
            let frac = silu(self.isa, gate, up, &mut workspace.inputs[..wide])?;
            self.put(&mut writer, wide, frac, Precision::Peaks)?;
        }
        self.add_to_residual(&down, &writer.finish()?)
    }

    /// norm(residual) of some tokens of the batch.
    fn normalize<'b>(
        &mut self,
        buffers: &'b mut Buffers<'w>,
        weight: &Vector,
        tokens: Range<usize>,
        precision: Precision,
    ) -> Result<Activations<'b>, Error> {
        let width = self.shape.width;
        let epsilon = self.model.manifest().params().rms_epsilon;
        let mut writer = buffers.writer(self.isa, tokens.len(), self.inputs(width))?;
        for t in tokens {
            let row = &self.workspace.residual[t * width..][..width];
            let frac =
                rms_norm(self.isa, row, RESIDUAL_FRAC, weight, epsilon, &mut self.workspace.inputs[..width])?;
            self.put(&mut writer, width, frac, precision)?;
        }
        Ok(writer.finish()?)
    }

    /// Writes down the first `cols` of `inputs`, as often as matrices take them. `precision` is that for weights of 4 or 8 bits: if
    /// there are any of 16, activations have as many.
    fn put(
        &mut self,
        writer: &mut Writer,
        cols: usize,
        frac: i32,
        precision: Precision,
    ) -> Result<(), Error> {
        let inputs = self.inputs(cols);
        let precision = if self.shape.twice { Precision::Words } else { precision };
        let values = &mut self.workspace.inputs[..inputs];
        values.copy_within(..inputs - cols, cols);
        Ok(writer.put(values, frac, precision)?)
    }

    /// Columns of activations that stand for `cols`.
    const fn inputs(&self, cols: usize) -> usize {
        if self.shape.twice { 2 * cols } else { cols }
    }

    /// residual += W x.
    fn add_to_residual(&mut self, weights: &Matrix, x: &Activations) -> Result<(), Error> {
        let workspace = &mut self.workspace;
        let output = Output::Add { before: workspace.residual, after: shared_64(workspace.next_residual) };
        multiply(self.isa, self.workers, x, RESIDUAL_FRAC, &[(weights, output)])?;
        core::mem::swap(&mut workspace.residual, &mut workspace.next_residual);
        Ok(())
    }

    /// Rotates the queries and keys of the batch.
    fn rotate(&mut self, tokens: usize) -> Result<(), Error> {
        let (shape, workspace) = (&self.shape, &mut self.workspace);
        let tables = workspace.rotations.chunks_exact(shape.pairs);
        let queries = workspace.queries.chunks_exact_mut(shape.queries());
        let keys = workspace.keys.chunks_exact_mut(shape.keys());
        for ((table, queries), keys) in tables.zip(queries).zip(keys).take(tokens) {
            rotate(queries, shape.head_dim, table)?;
            rotate(keys, shape.head_dim, table)?;
        }
        Ok(())
    }

    /// Puts keys and values of token `t` of the batch into the cache.
    fn remember(&mut self, layer: usize, t: usize) -> Result<(), Error> {
        let (shape, layout, workspace) = (&self.shape, &self.layout, &mut self.workspace);
        let (octets, scales) = (layout.octets(shape.context), Layout::scales(shape.context));
        for head in 0..shape.kv_heads {
            let slot = layer * shape.kv_heads + head;
            let numbers = (t * shape.kv_heads + head) * shape.head_dim..;
            let keys = RowsMut {
                octets: &mut workspace.key_octets[slot * octets..][..octets],
                scales: &mut workspace.key_scales[slot * scales..][..scales],
            };
            let key = &workspace.keys[numbers.clone()][..shape.head_dim];
            layout.put_key(keys, self.position + t, key)?;
            let values = RowsMut {
                octets: &mut workspace.value_octets[slot * octets..][..octets],
                scales: &mut workspace.value_scales[slot * scales..][..scales],
            };
            layout.put_value(values, self.position + t, &workspace.values[numbers][..shape.head_dim])?;
        }
        Ok(())
    }

    /// Attention of all tokens of the batch, (tokens, heads, `head_dim`), to the room of the residual stream to be. It is divided
    /// by tokens and heads.
    fn attend(&mut self, layer: usize, tokens: usize) -> Result<(), Error> {
        let (shape, layout, position, isa) = (&self.shape, &self.layout, self.position, self.isa);
        let workspace = &mut self.workspace;
        let (octets, scales) = (layout.octets(shape.context), Layout::scales(shape.context));
        let (dim, heads) = (shape.head_dim, shape.heads);
        let (queries, key_octets, value_octets) =
            (&*workspace.queries, &*workspace.key_octets, &*workspace.value_octets);
        let (key_scales, value_scales) = (&*workspace.key_scales, &*workspace.value_scales);
        let out = shared_64(workspace.next_residual);
        let cost = attention::COST * dim * (position + tokens);
        let failed = AtomicBool::new(false);
        divide(self.workers, tokens * heads, cost, |parts| {
            let mut scratch = Scratch::new();
            for part in parts {
                let positions = position + part / heads + 1;
                let slot = layer * shape.kv_heads + part % heads / (heads / shape.kv_heads);
                let (octets, scales) =
                    (slot * octets..(slot + 1) * octets, slot * scales..(slot + 1) * scales);
                let cache = Cache {
                    keys: Rows { octets: &key_octets[octets.clone()], scales: &key_scales[scales.clone()] },
                    values: Rows { octets: &value_octets[octets], scales: &value_scales[scales] },
                };
                match attend(isa, layout, &queries[part * dim..][..dim], &cache, positions, &mut scratch) {
                    Ok(mean) => {
                        for (out, &mean) in out[part * dim..].iter().zip(mean) {
                            out.store(mean, Relaxed);
                        }
                    }
                    Err(ShapeError) => failed.store(true, Relaxed),
                }
            }
        });
        if failed.into_inner() { Err(ShapeError.into()) } else { Ok(()) }
    }

    /// Logits behind some tokens of the batch, to `out` or, of one token, to the workspace.
    fn head(&mut self, tokens: Range<usize>, out: Option<&mut [i32]>) -> Result<(), Error> {
        let head = weights::head(&self.model)?;
        let norm = weights::vector(&self.model, TensorKind::OutputNorm, 0)?;
        self.with_buffers(|engine, buffers| {
            let x = engine.normalize(buffers, &norm, tokens, Precision::Outliers)?;
            let out = out.unwrap_or(engine.workspace.logits);
            project(engine.isa, engine.workers, &x, [(&head, out)])
        })
    }
}
