// Greedy selection from many tokens: exact, on rows of log K that are computed for the likely next picks.
//
// Algorithm: only the rows of picked tokens are ever needed, and which will be picked is nearly known. When a pick has
// no row yet, one product computes its row and those of the 127 next best candidates by current gain. A row's bits do
// not depend on the block of rows it is computed in: the picks are those of the full matrix. Rows are kept in a ring
// of such blocks; one that is overwritten too early is computed again. Norms are those that the similarities left.
//
// Mapping: one persistent, cooperative launch; the blocks are split into teams, a team for a sample at a time. Steps:
// 16 tokens a thread in registers (score, rho, log prior, slot of the row), any more in memory; they are put down in
// memory while a product is computed, whose tiles all members of the team take in turn. Two variants, by architecture
// and N (paths.h):
// - clustered: the first 8 blocks of a team, a thread-block cluster, take the steps, and agree on a pick through
//   distributed shared memory. The others wait in global memory for a product's order.
// - all members take the steps, and agree through posts in global memory and the team's barrier there.
//
// Cost: 2 D flops for each cosine of one to six rows a pick; `visual` is read once for 128 rows. Bound by L2 and the
// tensor cores in the products, by latency in the steps: estimated at 2,000 cycles in a cluster at N = 32,768, 4,000 or
// more in a team.
//
// Determinism: no sum crosses threads but in a fixed order; neither the variant nor the number of members and teams
// touches a sum.
#pragma once

#include "cuda/greedy/exchange.cuh"
#include "cuda/tile/product.cuh"
#include "cuda/tile/rows.cuh"

namespace mi_pruner::cuda {

constexpr int kHeldParts = 16; // of a row's normaliser, in a lane's registers: all, up to 32,768 tokens

// One member's part in its team.
template <typename T, typename Tile> class RowTeam {
public:
  __device__ RowTeam(const Tokens& visual, const float* norms, int64_t dim, const float* scores,
                     const Densities& densities, const Selection& selection, const RowMemory& memory,
                     const Picks& picks, RowShared<Tile>& shared)
      : visual(visual), norms(norms), dim(dim), scores(scores), densities(densities), selection(selection),
        memory(memory), picks(picks), shared(shared), clustered(kHasClusters && memory.clustered),
        team(blockIdx.x / static_cast<unsigned>(memory.members)),
        member(blockIdx.x % static_cast<unsigned>(memory.members)), barrier(memory.arrivals + team, memory.members),
        sample(team) {}

  __device__ void run() {
    const bool steps = !clustered || member < kClusterBlocks;
    if (clustered && steps) ClusterExchange<Tile>::prepare(shared);
    for (;;) {
      Order order{};
      if (steps) order = next_order();
      if (clustered) order = shared_order(order);
      if (order.sample >= visual.layout.samples) return;
      produce(order);
    }
  }

private:
  // The steps up to the next pick that needs a product.
  __device__ Order next_order() {
    for (; sample < visual.layout.samples; sample += memory.teams, picked = products = 0) {
      const Span span = span_of(visual.layout, sample), slots = span_of(picks.slots, sample);
      const int64_t pick = advance(span, slots);
      if (pick >= 0) return {sample, pick, products++ % memory.generations, scale_of(selection, picked - 1)};
      const Deal deal = dealt_for_steps();
      clear_slots(picks, slots, picked, deal.block * kTileThreads + threadIdx.x, deal.blocks * kTileThreads);
    }
    return {visual.layout.samples, 0, 0, 0};
  }

  // Picks until one needs a product: that one; or until the sample is done: -1.
  __device__ int64_t advance(const Span& span, const Span& slots) {
    const int64_t limit = limit_of(picks, sample, span, slots);
    RowQuad held[kHeldQuads];
    take_up(span, held);
    ClusterExchange<Tile> exchange(shared, round, member);
    const float* const rows = memory.rows + team * memory.cached() * memory.row_stride;
    int64_t pick = -1;
    bool missing = false;
    while (picked < limit && !missing) {
      const Post own = step(span, held, exchange, pick);
      const Post best = clustered ? exchange.agree(own, held, rows, memory.row_stride, span.count) : agree(own);
      if (best.key == 0 || gain_of(best.key) < picks.min_gain) break;
      pick = index_of(best.key);
      if (member == 0 && threadIdx.x == 0) {
        picks.indices[slots.begin + picked] = pick;
        picks.gains[slots.begin + picked] = gain_of(best.key);
      }
      if (++picked == limit) break;
      remove(span, held, pick);
      if (selection.redundancy == Redundancy::kChain) weight = expf(densities.log_prior[span.begin + pick]);
      missing = best.slot == kNoRow;
      place = missing ? products % memory.generations * kTileRows : best.slot;
    }
    wait_for_copies<0>(); // the next product, or sample, overwrites what they read
    if (missing) put_down(span, held);
    return missing ? pick : -1;
  }

  __device__ Deal dealt_for_steps() const { return {clustered ? kClusterBlocks : memory.members, member}; }

  __device__ void take_up(const Span& span, RowQuad (&held)[kHeldQuads]) const {
    const Deal deal = dealt_for_steps();
#pragma unroll
    for (int k = 0; k < kHeldQuads; ++k) {
      if (picked == 0)
        held[k].start(scores, densities.log_prior, span, deal.first(k));
      else
        held[k].load(scores, densities.log_prior, memory, span, deal.first(k));
    }
    if (picked > 0) return;
    for (int k = kHeldQuads; deal.first(k) < span.count; ++k) {
      RowQuad other;
      other.start(scores, densities.log_prior, span, deal.first(k));
      other.store(memory, span);
    }
  }

  __device__ void put_down(const Span& span, const RowQuad (&held)[kHeldQuads]) const {
#pragma unroll
    for (int k = 0; k < kHeldQuads; ++k)
      held[k].store(memory, span);
  }

  __device__ void remove(const Span& span, RowQuad (&held)[kHeldQuads], int64_t pick) const {
#pragma unroll
    for (int k = 0; k < kHeldQuads; ++k)
      held[k].remove(pick);
    const Deal deal = dealt_for_steps();
    if (pick >= deal.held() && deal.gives_thread(pick)) memory.slot[span.begin + pick] = kPicked;
  }

  // rho with the row in `place`, of `pick` (-1: unknown, after a product); returns this thread's best.
  __device__ Post step(const Span& span, RowQuad (&held)[kHeldQuads], const ClusterExchange<Tile>& exchange,
                       int64_t pick) const {
    const int64_t at = team * memory.cached() + place;
    const float* const row = memory.rows + at * memory.row_stride;
    const float log_z = picked == 0 ? 0.0f : __ldcg(memory.log_z + at), scale = scale_of(selection, picked);
    if (picked > 0) {
      const bool fetched = clustered && exchange.has(pick);
      float4 log_kernels[kHeldQuads] = {};
#pragma unroll
      for (int k = 0; k < kHeldQuads; ++k)
        if (held[k].first < span.count)
          log_kernels[k] = fetched ? exchange.at(k) : __ldcg(reinterpret_cast<const float4*>(row + held[k].first));
#pragma unroll
      for (int k = 0; k < kHeldQuads; ++k)
        held[k].join(log_kernels[k], log_z, weight, selection.redundancy, picked);
    }
    Post best = best_of(held, scale);
    const Deal deal = dealt_for_steps();
    for (int k = kHeldQuads; deal.first(k) < span.count; ++k) {
      RowQuad others[1], &other = others[0];
      other.load(scores, densities.log_prior, memory, span, deal.first(k));
      if (picked > 0) {
        other.join(__ldcg(reinterpret_cast<const float4*>(row + other.first)), log_z, weight, selection.redundancy,
                   picked);
        other.store(memory, span);
      }
      const Post post = best_of(others, scale);
      if (post.key > best.key) best = post;
    }
    return best;
  }

  // The best token of a team without a cluster: each member posts its own, and reads all.
  __device__ Post agree(const Post& own) {
    const Post best = block_best(own, shared);
    Post* const posts = memory.posts + (round++ % 2 * memory.teams + team) * memory.members;
    if (threadIdx.x == 0) posts[member] = best;
    barrier.wait();
    Post top{0, kNoRow};
    for (int64_t m = threadIdx.x; m < memory.members; m += kTileThreads) {
      const Post post = load_whole(posts + m);
      if (post.key > top.key) top = post;
    }
    return block_best(top, shared);
  }

  // The cluster's order, to all members: the others wait here.
  __device__ Order shared_order(const Order& order) {
    Order* const common = memory.orders + team;
    if (member == 0 && threadIdx.x == 0) *common = order;
    barrier.wait();
    return {__ldcg(&common->sample), __ldcg(&common->pick), __ldcg(&common->generation), __ldcg(&common->scale)};
  }

  // f(token) for the tokens of this thread, where all members share in the work.
  template <typename F> __device__ void for_each_own(const Span& span, const F& f) const {
    const Deal deal{memory.members, member};
    for (int k = 0; deal.first(k) < span.count; ++k)
      for (int64_t i = deal.first(k), end = i + kQuad < span.count ? i + kQuad : span.count; i < end; ++i)
        f(i);
  }

  // The tokens of the next product, in shared.chosen: the pick, then the best of those that have no row.
  __device__ void choose(const Span& span, const Order& order) {
    const int64_t busy = Deal{memory.members, member}.busy(span.count), each = (kProposals + busy - 1) / busy,
                  count = each * busy;
    uint64_t* const proposed = memory.candidates + team * kMostCandidates;
    uint64_t below = ~uint64_t{0};
    for (int64_t k = 0; k < each && member < busy; ++k) {
      uint64_t best = 0;
      if (below != 0)
        for_each_own(span, [&](int64_t i) {
          const int64_t token = span.begin + i;
          if (__ldcg(memory.slot + token) != kNoRow) return;
          const uint64_t key = key_of(gain_from(pickable(scores[token]), __ldcg(memory.rho + token), order.scale), i);
          if (key < below && key > best) best = key;
        });
      below = block_best({best, kNoRow}, shared).key;
      if (threadIdx.x == 0) proposed[member * each + k] = below;
    }
    if (threadIdx.x < kTileRows) shared.chosen[threadIdx.x] = threadIdx.x == 0 ? order.pick : -1;
    barrier.wait();
    for (int64_t k = threadIdx.x; k < count; k += kTileThreads)
      shared.candidates[k] = __ldcg(proposed + k);
    __syncthreads();
    for (int64_t k = threadIdx.x; k < count; k += kTileThreads) {
      const uint64_t key = shared.candidates[k];
      int64_t rank = 1; // after the pick
      for (int64_t other = 0; other < count; ++other)
        rank += shared.candidates[other] > key;
      if (key != 0 && rank < kTileRows) shared.chosen[rank] = index_of(key);
    }
    __syncthreads();
  }

  // Rows of log K of the chosen tokens with all, and their normalisers, in the places from `base` on.
  __device__ void multiply(const Span& span, int64_t number, int64_t base) {
    const Rows<T> features = rows_of<T>(visual, number, span);
    const int64_t tiles = (span.count + kTileColumns - 1) / kTileColumns, places = team * memory.cached() + base;
    for (int64_t at = member; at < tiles; at += memory.members) {
      const int64_t first = at * kTileColumns, left = span.count - first;
      const auto row_token = [&](int r) { return shared.chosen[r]; };
      const auto column_token = [&](int c) { return first + c < span.count ? first + c : -1; };
      for (int k = threadIdx.x; k < Tile::kTokens; k += kTileThreads) {
        const int64_t token = k < kTileRows ? row_token(k) : column_token(k - kTileRows);
        shared.tile.set_norm(k, token < 0 ? 0.0f : norms[span.begin + token]);
      }
      TileSource<T, Tile> source(features, row_token, features, column_token, 0, shared.tile);
      multiply_tile<false>(source, dim, kTileRows, left < kTileColumns ? static_cast<int>(left) : kTileColumns, 0,
                           shared.tile);
      store_weights(visual.prior, span.begin, first, span.count, kTileRows, kTileColumns, shared.tile);
      const auto sums = shared.tile.sums();
      take_cosines(
          0, kTileRows, kTileRows, [&](int row, int quad) { return four_of(sums.four(row, quad)); },
          [&](float cosine) { return log_kernel(cosine, selection.kappa); }, sums, shared.tile);
      __syncthreads();
      for_each_row(kTileRows, [&](int row) {
        LaneRow x;
#pragma unroll
        for (int k = 0; k < kLaneQuads; ++k)
          x[k] = four_of(sums.four(row, lane_quad(k)));
        const LogSum part = part_of(x, shared.tile.weight + kTileRows);
        if (shared.chosen[row] < 0) return;
        store_row(x, memory.rows + (places + row) * memory.row_stride, first, span.count);
        if (threadIdx.x % kRowLanes == 0) memory.parts[(places + row) * memory.tiles + at] = part;
      });
      __syncthreads(); // before the next tile's stages
    }
    barrier.wait();
    for (int64_t row = member * (kTileThreads / 32) + threadIdx.x / 32; row < kTileRows;
         row += memory.members * (kTileThreads / 32)) {
      if (shared.chosen[row] < 0) continue;
      const float log_z = log_of_parts<kHeldParts>(memory.parts + (places + row) * memory.tiles, tiles);
      if (threadIdx.x % 32 == 0) memory.log_z[places + row] = log_z - densities.log_total[number];
    }
    barrier.wait();
  }

  // Gives the pick and other candidates rows in a generation of the ring, whose former rows are forgotten.
  __device__ void produce(const Order& order) {
    const Span span = span_of(visual.layout, order.sample);
    const int32_t base = static_cast<int32_t>(order.generation * kTileRows);
    for_each_own(span, [&](int64_t i) {
      int32_t* const slot = memory.slot + span.begin + i;
      const int32_t old = __ldcg(slot);
      if (old >= base && old < base + kTileRows) *slot = kNoRow;
    });
    choose(span, order);
    if (threadIdx.x > 0 && threadIdx.x < kTileRows) {
      const int64_t token = shared.chosen[threadIdx.x];
      if (token >= 0 && Deal{memory.members, member}.gives_block(token))
        memory.slot[span.begin + token] = base + static_cast<int32_t>(threadIdx.x);
    }
    multiply(span, order.sample, base);
  }

  const Tokens& visual;
  const float* const norms;
  const int64_t dim;
  const float* const scores;
  const Densities& densities;
  const Selection& selection;
  const RowMemory& memory;
  const Picks& picks;
  RowShared<Tile>& shared;
  const bool clustered;
  const unsigned team, member;
  TeamBarrier barrier;
  unsigned round = 0; // agreements so far: posts alternate between two places
  // Where the team is: its sample, picks and products of it; the last pick's row, and its weight in rho.
  int64_t sample, picked = 0, products = 0, place = 0;
  float weight = 1;
};

// One block a multiprocessor: more members would only make the barrier slower.
template <typename T, typename Tile>
__global__ void __launch_bounds__(runs_here<Tile>() ? kTileThreads : 32, 1)
    rows_kernel(const Tokens visual, const float* const norms, const int64_t dim, const float* const scores,
                const Densities densities, const Selection selection, const RowMemory memory, const Picks picks) {
  MI_PRUNER_SHARED(RowShared<Tile>, shared);
  if constexpr (runs_here<Tile>())
    RowTeam<T, Tile>(visual, norms, dim, scores, densities, selection, memory, picks, shared).run();
}

} // namespace mi_pruner::cuda
