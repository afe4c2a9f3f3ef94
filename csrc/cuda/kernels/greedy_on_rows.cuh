// Greedy selection from many tokens: exact, on rows of log K that are computed for the likely next picks, beside the
// steps.
//
// Algorithm: only the rows of picked tokens are ever needed, and which will be picked is nearly known: the tokens of
// largest gain that have no row yet. A product computes the rows of 64 of them, while picks go on from the rows that
// are there; when it is done, the next is put on offer, from the gains of that moment. A pick that has no row waits for
// the product on offer and, if that is not of it, for one that is. A row's bits do not depend on the block of rows it
// is computed in: the picks are those of the full matrix. Rows are kept in a ring of such blocks; one that is
// overwritten too early is computed again. Norms are those that the similarities left.
//
// Mapping: one persistent launch. Its blocks, or clusters of eight where the GPU runs any, take roles in the order in
// which they start: the first few take the steps of a sample at a time each (a team), the others do parts of what is on
// offer (row_products.cuh), as do those of a team while they wait. 16 tokens a thread in registers (score, rho, log
// prior), any more in memory; they are put down in memory while a team's blocks help, whose tiles need the registers.
// Nobody waits for a block that may not have started, so that it is no cooperative launch, and runs on any part of a
// GPU that has room for a team.
//
// Cost: 2 D flops for each cosine of some rows a pick; `visual` is read once for 64 rows. Bound by latency in the
// steps, by memory in the products.
//
// Determinism: no sum crosses threads but in a fixed order; neither who does a part, nor when, nor the number of blocks
// and teams touches a sum.
#pragma once

#include "cuda/greedy/row_products.cuh"

namespace mi_pruner::cuda {

// One block's part in its team.
template <typename T, typename Tile> class RowTeam {
public:
  __device__ RowTeam(const Tokens& visual, const float* scores, const Densities& densities, const Selection& selection,
                     const RowMemory& memory, const Picks& picks, unsigned team, const Deal& deal,
                     RowProducts<T, Tile>& products, RowShared<Tile>& shared)
      : visual_(visual), scores_(scores), densities_(densities), selection_(selection), memory_(memory), picks_(picks),
        shared_(shared), team_(team), deal_(deal), leads_(deal.block == 0), products_(products),
        exchange_(shared, deal) {}

  __device__ void run() {
    for (int64_t sample = team_; sample < visual_.layout.samples; sample += memory_.teams) {
      sample_ = sample;
      span_ = span_of(visual_.layout, sample);
      select();
    }
    if (leads_ && threadIdx.x == 0) add_release(memory_.over(), 1u);
  }

private:
  using Held = RowQuad[kHeldQuads];

  __device__ Span slots() const { return span_of(picks_.slots, sample_); }

  __device__ void select() {
    limit_ = static_cast<int>(limit_of(picks_, sample_, span_, slots()));
    picked_ = 0;
    pick_ = -1;
    all_have_rows_ = false;
    Held held;
    start(held);
    for (bool is_done; advance(held, is_done);) {
      if (is_done) take_in();
      for (;;) { // once; more often for a pick that has no row
        const bool missing = place_ == kNoRow;
        // Not over the row that is about to be read.
        if (!on_offer_ &&
            (missing || (!all_have_rows_ && static_cast<int>(place_) / kProductRows != next_generation())))
          offer(held, missing ? pick_ : -1);
        if (!missing) break;
        help(held);
        take_in();
      }
    }
    drop();
    exchange_.forget();
    clear_slots(picks_, slots(), picked_, deal_.block * kTileThreads + threadIdx.x, deal_.blocks() * kTileThreads);
  }

  // Picks until there is something else to be done: the product is done, a pick has no row, or none is on offer; false:
  // that was the last one.
  __device__ bool advance(Held& held, bool& is_done) {
    if (deal_.within(1, span_.count)) return advance_by<1>(held, is_done);
    if (deal_.within(2, span_.count)) return advance_by<2>(held, is_done);
    return advance_by<kHeldQuads>(held, is_done);
  }

  // By what a thread has of the tokens: so many quads at the most.
  template <int kQuads> __device__ bool advance_by(Held& held, bool& is_done) {
    const int64_t first_slot = slots().begin;
    const float* const rows = memory_.rows + team_ * memory_.cached() * memory_.row_stride;
    while (picked_ < limit_) {
      const Post best = exchange_.template agree<kQuads>(step<kQuads>(held), rows, memory_.row_stride, span_.count);
      if (best.key == 0 || gain_of(best.key) < picks_.min_gain) break;
      pick_ = static_cast<int>(index_of(best.key));
      if (leads_ && threadIdx.x == 0) {
        picks_.indices[first_slot + picked_] = pick_;
        picks_.gains[first_slot + picked_] = gain_of(best.key);
      }
      if (++picked_ == limit_) break;
      remove(held);
      if (selection_.redundancy == Redundancy::kChain) weight_ = expf(densities_.log_prior[span_.begin + pick_]);
      place_ = best.slot;
      is_done = best.is_done != 0;
      if (is_done || place_ == kNoRow || !(on_offer_ || all_have_rows_)) return true;
    }
    return false;
  }

  // ---- tokens ----------------------------------------------------------------------------------------------------
  __device__ void start(Held& held) {
#pragma unroll
    for (int k = 0; k < kHeldQuads; ++k) {
      held[k].start(scores_, densities_.log_prior, span_, deal_.first(k));
#pragma unroll
      for (int e = 0; e < kQuad; ++e)
        own_slot(k, e) = held[k].has(e) ? kNoRow : kPicked;
    }
    for (int k = kHeldQuads; deal_.first(k) < span_.count; ++k) {
      RowQuad other;
      other.start(scores_, densities_.log_prior, span_, deal_.first(k));
      other.store(memory_.rho, span_, deal_.first(k));
      for (int e = 0; e < kQuad; ++e)
        if (deal_.first(k) + e < span_.count) slot_in_memory(deal_.first(k) + e) = other.has(e) ? kNoRow : kPicked;
    }
    __syncthreads(); // slots are written by others, too
  }

  __device__ uint16_t& own_slot(int k, int e) const { return shared_.slot[k][threadIdx.x][e]; }
  __device__ uint16_t& slot_in_memory(int token) const { return memory_.slot[span_.begin + token]; }

  // Of a token of this block.
  __device__ uint16_t& slot_of(int token) const {
    if (token >= deal_.held()) return slot_in_memory(token);
    return shared_.slot[deal_.quad_of(token)][deal_.thread_of(token)][token % kQuad];
  }

  __device__ void load(RowQuad& other, int first) const {
    other.load(scores_, densities_.log_prior, memory_.rho, span_, first,
               [&](int e) { return slot_in_memory(first + e); });
  }

  // The pick.
  __device__ void remove(Held& held) const {
    if (!deal_.gives_thread(pick_)) return;
    slot_of(pick_) = kPicked;
#pragma unroll
    for (int k = 0; k < kHeldQuads; ++k)
      held[k].remove(pick_ - deal_.first(k));
  }

  // rho with the row of the last pick, if there is one; returns the warp's best, and what the first warp knows of the
  // product.
  template <int kQuads> __device__ Post step(Held& held) {
    unsigned done = 0;
    const bool looks = on_offer_ && leads_ && threadIdx.x < 32;
    if (looks) done = load_relaxed(memory_.done(team_)); // beside the row
    const int64_t at = team_ * memory_.cached() + place_;
    const float* const row = memory_.rows + at * memory_.row_stride;
    const float log_z = pick_ < 0 ? 0.0f : __ldcg(memory_.log_z + at), scale = scale_of(selection_, picked_);
    if (pick_ >= 0) {
      const bool fetched = exchange_.has(pick_);
      float4 log_kernels[kQuads] = {};
#pragma unroll
      for (int k = 0; k < kQuads; ++k)
        if (deal_.first(k) < span_.count)
          log_kernels[k] = fetched ? exchange_.at(k) : __ldcg(reinterpret_cast<const float4*>(row + deal_.first(k)));
#pragma unroll
      for (int k = 0; k < kQuads; ++k)
        held[k].join(log_kernels[k], log_z, weight_, selection_.redundancy, picked_);
    }
    Post best = best_of<kQuads>(held, scale);
    for (int k = kHeldQuads; kQuads == kHeldQuads && deal_.first(k) < span_.count; ++k) {
      const int first = deal_.first(k);
      RowQuad other;
      load(other, first);
      if (pick_ >= 0) {
        other.join(__ldcg(reinterpret_cast<const float4*>(row + first)), log_z, weight_, selection_.redundancy,
                   picked_);
        other.store(memory_.rho, span_, first);
      }
      float gain[kQuad];
      const float most = other.most(scale, gain);
#pragma unroll
      for (int e = kQuad - 1; e >= 0; --e)
        if (gain[e] == most && key_of(most, first + e) > best.key)
          best = {key_of(most, first + e), slot_in_memory(first + e)};
    }
    best = warp_best(best);
    // One lane's: each of them tells another block.
    if (looks) best.is_done = __shfl_sync(kFullWarp, done, 0) == static_cast<unsigned>(taken_);
    return best;
  }

  // Of the tokens in registers, which are in ascending order: gains are compared as they are, and make one key.
  template <int kQuads> __device__ Post best_of(const Held& held, float scale) const {
    float gain[kQuads][kQuad], most = MI_PRUNER_NAN;
#pragma unroll
    for (int k = 0; k < kQuads; ++k)
      most = fmaxf(most, held[k].most(scale, gain[k]));
    int at = 0;
#pragma unroll
    for (int place = kQuads * kQuad - 1; place >= 0; --place)
      if (gain[place / kQuad][place % kQuad] == most) at = place;
    const int index = deal_.first(at / kQuad) + at % kQuad;
    return {isnan(most) ? 0 : key_of(most, index), own_slot(at / kQuad, at % kQuad)};
  }

  // ---- products --------------------------------------------------------------------------------------------------
  __device__ int next_generation() const { return static_cast<int>(offers_ % memory_.generations); }

  // Puts the next product on offer: of `pick`, unless that is -1, and of the tokens of largest gain that have no row;
  // nothing where there are none.
  __device__ void offer(const Held& held, int pick) {
    const bool overwrites = offers_ >= memory_.generations; // maybe rows of a sample before
    if (overwrites) exchange_.forget();                     // before the posts that the first block goes on by
    propose(held, pick);
    if (shared_.chosen[0] < 0) {
      all_have_rows_ = true; // and keep them: rows are forgotten for others alone
      return;
    }
    base_ = next_generation() * kProductRows;
    if (overwrites) forget();
    on_offer_ = true;
    ++offers_;
    if (!leads_) return;
    products_.wait(team_, taken_); // of a product that was dropped
    Order* const order = memory_.orders + team_;
    if (threadIdx.x < kProductRows) order->chosen[threadIdx.x] = shared_.chosen[threadIdx.x];
    taken_ = products_.parts_of(span_.count);
    if (threadIdx.x == 0) {
      order->sample = sample_;
      order->base = base_;
      order->parts = taken_;
      store_relaxed(memory_.done(team_), 0u); // nobody waits for the former: all of the team have sent posts after it
    }
    __syncthreads();
    if (threadIdx.x > 0) return;
    store_release(memory_.left(team_), static_cast<unsigned>(taken_));
    store_release(memory_.offers(team_), offers_);
  }

  // The rows that are about to be overwritten.
  __device__ void forget() {
    const auto clear = [&](uint16_t& slot) {
      if (slot >= base_ && slot < base_ + kProductRows) slot = kNoRow;
    };
    for (int k = 0; k < kHeldQuads; ++k)
      for (int e = 0; e < kQuad; ++e)
        clear(own_slot(k, e));
    for (int k = kHeldQuads; deal_.first(k) < span_.count; ++k)
      for (int e = 0; e < kQuad && deal_.first(k) + e < span_.count; ++e)
        clear(slot_in_memory(deal_.first(k) + e));
  }

  // The tokens of the next product, to shared.chosen of all blocks.
  __device__ void propose(const Held& held, int pick) {
    const float scale = scale_of(selection_, picked_ - 1); // of the gains that the pick was found by
    const int count = deal_.warps(span_.count),
              end = count * kMostOfWarp < kProposals ? count * kMostOfWarp : kProposals;
    uint64_t below = ~uint64_t{0};
    for (int first = 0; first < end; first += count) {
      below = warp_best(best_without_row(held, scale, below));
      exchange_.gather({below, kNoRow}, first, count);
    }
    if (threadIdx.x < kProductRows) shared_.chosen[threadIdx.x] = threadIdx.x == 0 ? pick : -1;
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < end) {
      const uint64_t key = shared_.candidates[threadIdx.x];
      int rank = pick < 0 ? 0 : 1;
      for (int k = 0; k < end; ++k)
        rank += shared_.candidates[k] > key;
      if (key != 0 && rank < kProductRows) shared_.chosen[rank] = static_cast<int>(index_of(key));
    }
    __syncthreads();
  }

  // The thread's largest key below this one.
  __device__ uint64_t best_without_row(const Held& held, float scale, uint64_t below) const {
    uint64_t best = 0;
    const auto look = [&](const RowQuad& quad, int first, const auto& slot) {
      float gain[kQuad];
      quad.most(scale, gain);
#pragma unroll
      for (int e = 0; e < kQuad; ++e) {
        if (slot(e) != kNoRow || isnan(gain[e])) continue;
        const uint64_t key = key_of(gain[e], first + e);
        if (key < below && key > best) best = key;
      }
    };
#pragma unroll
    for (int k = 0; k < kHeldQuads; ++k)
      look(held[k], deal_.first(k), [&](int e) { return own_slot(k, e); });
    for (int k = kHeldQuads; deal_.first(k) < span_.count; ++k) {
      const int first = deal_.first(k);
      RowQuad other;
      load(other, first);
      look(other, first, [&](int e) { return first + e < span_.count ? slot_in_memory(first + e) : kPicked; });
    }
    return best;
  }

  // Does parts of the product until it is done.
  __device__ void help(Held& held) {
    exchange_.forget();
    __syncthreads(); // all have what was fetched: the tiles come to its place
#pragma unroll
    for (int k = 0; k < kHeldQuads; ++k)
      held[k].store(memory_.rho, span_, deal_.first(k));
    products_.wait_for_offer(team_, offers_); // by the first block, which may come later than this one
    while (products_.help(team_))
      ;
    products_.wait(team_, products_.parts_of(span_.count));
    span_ = span_of(visual_.layout, sample_); // anew: no registers for it beside the tiles
#pragma unroll
    for (int k = 0; k < kHeldQuads; ++k)
      held[k].load(scores_, densities_.log_prior, memory_.rho, span_, deal_.first(k),
                   [&](int e) { return own_slot(k, e); });
  }

  // The product on offer is done: its rows are there, maybe that of a pick that had none when it was sent.
  __device__ void take_in() {
    load_acquire(memory_.done(team_));
    __syncthreads(); // the pick has been removed
    if (threadIdx.x < kProductRows) {
      const int token = shared_.chosen[threadIdx.x];
      if (token >= 0 && deal_.gives_block(token) && slot_of(token) != kPicked)
        slot_of(token) = static_cast<uint16_t>(base_ + threadIdx.x);
    }
    __syncthreads();
    on_offer_ = false;
    for (int first = 0; first < kProductRows && place_ == kNoRow; first += 32) {
      const unsigned here = __ballot_sync(kFullWarp, shared_.chosen[first + threadIdx.x % 32] == pick_);
      if (here != 0) place_ = static_cast<unsigned>(base_ + first + __ffs(static_cast<int>(here)) - 1);
    }
  }

  // Nobody needs the product any more.
  __device__ void drop() {
    if (!on_offer_) return;
    on_offer_ = false;
    if (!leads_ || threadIdx.x > 0) return;
    const int left = static_cast<int>(swap_acquire_release(memory_.left(team_), 0));
    if (left > 0) taken_ -= left;
  }

  const Tokens& visual_;
  const float* const scores_;
  const Densities& densities_;
  const Selection& selection_;
  const RowMemory& memory_;
  const Picks& picks_;
  RowShared<Tile>& shared_;
  const unsigned team_;
  const Deal deal_;
  const bool leads_;
  RowProducts<T, Tile>& products_;
  Exchange<Tile> exchange_;
  // The sample, its picks and products; the last pick's row, and its weight in rho.
  int64_t sample_ = 0;
  Span span_{};
  int limit_ = 0, picked_ = 0, pick_ = -1;
  unsigned place_ = 0;
  float weight_ = 1;
  unsigned offers_ = 0; // of all samples
  bool on_offer_ = false, all_have_rows_ = false;
  int base_ = 0;  // of the last product's rows
  int taken_ = 0; // parts of it that are, or will be, done
};

// Does parts of what the teams have on offer, until all are done.
template <typename T, typename Tile>
__device__ void serve(const RowMemory& memory, unsigned first, RowProducts<T, Tile>& products,
                      RowShared<Tile>& shared) {
  const unsigned teams = static_cast<unsigned>(memory.teams);
  const auto look = [&] {
    for (;; wait_a_moment()) {
      for (unsigned k = 0; k < teams; ++k)
        if (products.offers((first + k) % teams)) return static_cast<int>((first + k) % teams);
      if (load_acquire(memory.over()) == teams) return -1;
    }
  };
  for (;;) {
    if (threadIdx.x == 0) shared.found = look();
    __syncthreads();
    const int team = shared.found;
    __syncthreads();
    if (team < 0) return;
    products.help(static_cast<unsigned>(team));
  }
}

// The number of this block, or of its cluster, among those that have started.
template <typename Tile> __device__ unsigned take_role(const RowMemory& memory, RowShared<Tile>& shared) {
  const bool first = !memory.clustered || blockIdx.x % kClusterBlocks == 0;
  if (first && threadIdx.x == 0) shared.role = add_acquire_release(memory.roles(), 1u);
  if (!memory.clustered) {
    __syncthreads();
    return shared.role;
  }
  Exchange<Tile>::prepare(shared);
  return load_from(&shared.role, 0);
}

// One block a multiprocessor.
template <typename T, typename Tile>
__global__ void __launch_bounds__(runs_here<Tile>() ? kTileThreads : 32, 1)
    rows_kernel(const Tokens visual, const float* const norms, const int64_t dim, const float* const scores,
                const Densities densities, const Selection selection, const RowMemory memory, const Picks picks) {
  MI_PRUNER_SHARED(RowShared<Tile>, shared);
  if constexpr (runs_here<Tile>()) {
    RowProducts<T, Tile> products(visual, norms, dim, densities, selection, memory, shared);
    const unsigned role = take_role(memory, shared);
    const Deal deal{memory.clustered, memory.clustered ? static_cast<int>(blockIdx.x % kClusterBlocks) : 0};
    if (role < memory.teams)
      RowTeam<T, Tile>(visual, scores, densities, selection, memory, picks, role, deal, products, shared).run();
    else
      serve(memory, role, products, shared);
    if (memory.clustered) cluster_end();
  }
}

} // namespace mi_pruner::cuda
