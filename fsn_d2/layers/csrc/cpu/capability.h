// The choice among the machine's vector units at run time.
//
// Kernels are written once over vectors of a given number of bytes and compiled for each unit, so
// the library needs no -march flag and runs on any machine of its architecture.

#pragma once

#include <cstdlib>
#include <string>

namespace fsn_d2 {

enum class Capability { kPlain, kAvx2, kAvx512 };

#if defined(__x86_64__)

// The best that the machine has, or less where ATEN_CPU_CAPABILITY says so, PyTorch's own variable
// ("default", "avx2", "avx512").
inline Capability capability() {
  static const Capability chosen = [] {
    const char* variable = std::getenv("ATEN_CPU_CAPABILITY");
    const std::string limit = variable ? variable : "avx512";
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (!avx2 || limit == "default") {
      return Capability::kPlain;
    }
    const bool avx512 = __builtin_cpu_supports("avx512f") && limit != "avx2";
    return avx512 ? Capability::kAvx512 : Capability::kAvx2;
  }();
  return chosen;
}

template <typename Kernel, typename... Arguments>
__attribute__((target("avx2,fma"))) void run_avx2(const Arguments&... arguments) {
  Kernel::template run<32>(arguments...);
}

template <typename Kernel, typename... Arguments>
__attribute__((target("avx512f,fma"))) void run_avx512(const Arguments&... arguments) {
  Kernel::template run<64>(arguments...);
}

#else

inline Capability capability() {
  return Capability::kPlain;
}

#endif

// Calls Kernel::run<bytes per vector>(arguments...), compiled for the machine.
template <typename Kernel, typename... Arguments>
void run_on_this_machine(const Arguments&... arguments) {
  switch (capability()) {
#if defined(__x86_64__)
    case Capability::kAvx512:
      return run_avx512<Kernel>(arguments...);
    case Capability::kAvx2:
      return run_avx2<Kernel>(arguments...);
#endif
    default:
      return Kernel::template run<16>(arguments...);  // SSE2, NEON: what every machine has
  }
}

}  // namespace fsn_d2
