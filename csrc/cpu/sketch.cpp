#include "cpu/sketch.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "cpu/parallel.h"

namespace mi_pruner::cpu {
namespace {

constexpr int64_t kSampled = 16;       // tokens that tell the energy of each group
constexpr double kSketchedToken = 300; // ns: a cache line and often a page for each group

// Energy of each group of coordinates, over some tokens of all.
template <typename Acc> std::vector<Acc> energies(const Tokens<Acc>& tokens) {
  const int64_t valid = static_cast<int64_t>(tokens.valid.size()), count = std::min(kSampled, valid);
  std::vector<int64_t> sampled(count);
  for (int64_t j = 0; j < count; ++j)
    sampled[j] = tokens.valid[j * valid / count];
  std::vector<Acc> energy(tokens.rows.dim / kGroupWidth);
  kernels<Acc>().energies(tokens.rows, sampled.data(), count, tokens.inverse_norm.get(), energy.data());
  return energy;
}

template <typename Acc> struct Groups {
  int64_t index[kSketchGroups];
  Acc weight[kSketchGroups];
  int count = 0;

  void add(size_t g, Acc its_weight) {
    index[count] = static_cast<int64_t>(g);
    weight[count++] = its_weight;
  }
};

// A sample of the groups, each drawn with a probability in proportion to its energy and weighted so that the expected
// inner product is that of all (systematic sampling, Madow 1949). Those that would be drawn for sure stand for
// themselves: a massive coordinate, as features of vision transformers have, is neither missed nor counted for many.
template <typename Acc> Groups<Acc> draw(const std::vector<Acc>& energy) {
  Groups<Acc> groups;
  std::vector<bool> sure(energy.size());
  Acc rest = std::accumulate(energy.begin(), energy.end(), Acc(0));
  for (bool more = true; more;) { // each that stands for itself leaves less for the others
    more = false;
    for (size_t g = 0; g < energy.size() && groups.count < kSketchGroups - 1; ++g)
      if (!sure[g] && energy[g] * (kSketchGroups - groups.count) > rest) {
        sure[g] = more = true;
        rest = std::max(rest - energy[g], Acc(0));
        groups.add(g, 1);
      }
  }
  const Acc step = rest / (kSketchGroups - groups.count);
  Acc sum = 0, next = step / 2;
  for (size_t g = 0; g < energy.size() && groups.count < kSketchGroups; ++g)
    if (!sure[g] && energy[g] > 0 && (sum += energy[g]) > next) {
      next += step;
      groups.add(g, std::sqrt(step / energy[g]));
    }
  return groups;
}

} // namespace

template <typename Acc>
Sketch<Acc>::Sketch(const Tokens<Acc>& tokens) : length_(padded(tokens.rows.count)), sketch_(length_ * kSketchWidth) {
  const Groups<Acc> groups = draw(energies(tokens));
  parallel_for(tokens.rows.count, kSketchedToken, [&](int64_t begin, int64_t end) {
    kernels<Acc>().sketch(tokens.rows, begin, end, tokens.inverse_norm.get(), groups.index, groups.weight, groups.count,
                          sketch_.get());
  });
  std::fill(sketch_.get() + tokens.rows.count * kSketchWidth, sketch_.get() + length_ * kSketchWidth, int16_t{0});
}

template <typename Acc> void Sketch<Acc>::cosines(int64_t j, Acc* cosines) const {
  kernels<Acc>().sketched_cosines(sketch_.get(), sketch_.get() + j * kSketchWidth, length_, cosines);
}

template class Sketch<float>;
template class Sketch<double>;

} // namespace mi_pruner::cpu
