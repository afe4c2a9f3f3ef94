// Which instruction set's kernels run: the widest that the processor has, or the one that MI_PRUNER_ISA names.
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include "cpu/kernels.h"

namespace mi_pruner::cpu {

#define MI_PRUNER_DECLARE(isa)                                                                                         \
  namespace isa {                                                                                                      \
  extern const Kernels<float> kFloat;                                                                                  \
  extern const Kernels<double> kDouble;                                                                                \
  }
MI_PRUNER_DECLARE(baseline)
#ifdef MI_PRUNER_X86_ISAS
MI_PRUNER_DECLARE(avx2)
MI_PRUNER_DECLARE(avx512)
#endif
#undef MI_PRUNER_DECLARE

namespace {

struct Tables {
  const Kernels<float>* of_float;
  const Kernels<double>* of_double;
};

Tables choose() {
#ifdef MI_PRUNER_X86_ISAS
  const char* asked = std::getenv("MI_PRUNER_ISA"); // to test a narrower one on a wider processor
  if (asked != nullptr && *asked == '\0') asked = nullptr;
  const auto allowed = [asked](const char* isa) { return asked == nullptr || std::strcmp(asked, isa) == 0; };
  if (asked != nullptr && !allowed("avx512") && !allowed("avx2") && !allowed("baseline"))
    throw std::runtime_error(std::string("MI_PRUNER_ISA: expected baseline, avx2 or avx512, got '") + asked + "'");
  if (allowed("avx512") && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("f16c"))
    return {&avx512::kFloat, &avx512::kDouble};
  if (allowed("avx2") && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("f16c"))
    return {&avx2::kFloat, &avx2::kDouble};
#endif
  return {&baseline::kFloat, &baseline::kDouble};
}

const Tables& tables() {
  static const Tables chosen = choose();
  return chosen;
}

} // namespace

template <> const Kernels<float>& kernels<float>() { return *tables().of_float; }
template <> const Kernels<double>& kernels<double>() { return *tables().of_double; }

} // namespace mi_pruner::cpu
