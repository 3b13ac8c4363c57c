// The CUDA ops on the host: the functors of csrc/cuda run with threads of the host in place of a
// block's, on CPU tensors, as the library fsn_d2_on_host. test_cuda_on_host.py compiles and uses
// it.

#include <torch/csrc/stable/library.h>

#include <condition_variable>
#include <cstddef>
#include <mutex>
#include <thread>
#include <vector>

#include "../schemas.h"
#include "op.h"
#include "pool_op.h"

namespace fsn_d2 {

int threads_per_block = 1;

// std::barrier of C++20.
class Barrier {
 public:
  explicit Barrier(int threads) : threads_(threads) {}

  void wait() {
    std::unique_lock<std::mutex> lock(mutex_);
    const int64_t round = round_;
    if (++arrived_ == threads_) {
      arrived_ = 0;
      ++round_;
      all_arrived_.notify_all();
    } else {
      all_arrived_.wait(lock, [&] { return round != round_; });
    }
  }

 private:
  int threads_;
  int arrived_ = 0;
  int64_t round_ = 0;
  std::mutex mutex_;
  std::condition_variable all_arrived_;
};

struct HostBlock {
  int thread_number;
  int64_t block_number, block_count;
  Barrier* barrier;

  int thread() const {
    return thread_number;
  }

  int threads() const {
    return threads_per_block;
  }

  int64_t number() const {
    return block_number;
  }

  int64_t blocks() const {
    return block_count;
  }

  void sync() const {
    if (threads_per_block > 1) {
      barrier->wait();
    }
  }

  template <typename scalar_t>
  void add(scalar_t* target, scalar_t value) const {
    static std::mutex mutex;
    const std::lock_guard<std::mutex> lock(mutex);
    *target += value;
  }
};

class Host {
 public:
  explicit Host(const Tensor&) {}

  // Three blocks, one after the other, for any number of tasks. Shared memory starts as garbage.
  template <typename Kernel>
  void launch(const char* name, const Kernel& kernel, int64_t tasks, int64_t shared_bytes) const {
    require(shared_bytes <= 48 * 1024, name, " asks for too much shared memory: ", shared_bytes);
    require(sizeof(Kernel) + sizeof(tasks) <= 4096, name, " has too many arguments");
    std::vector<std::max_align_t> shared(shared_bytes / sizeof(std::max_align_t) + 1);
    auto* bytes = reinterpret_cast<char*>(shared.data());
    Barrier barrier(threads_per_block);
    for (int64_t block = 0; block < std::min<int64_t>(3, tasks); ++block) {
      std::fill_n(bytes, shared_bytes, static_cast<char>(0xff));
      const auto run = [&](int thread) {
        kernel(HostBlock{thread, block, std::min<int64_t>(3, tasks), &barrier}, tasks, bytes);
      };
      std::vector<std::thread> others;
      for (int thread = 1; thread < threads_per_block; ++thread) {
        others.emplace_back(run, thread);
      }
      run(0);
      for (std::thread& other : others) {
        other.join();
      }
    }
  }
};

}  // namespace fsn_d2

extern "C" __attribute__((visibility("default"))) void set_threads_per_block(int threads) {
  fsn_d2::threads_per_block = threads;
}

STABLE_TORCH_LIBRARY(fsn_d2_on_host, library) {
  for (const char* schema : fsn_d2::kSchemas) {
    library.def(schema);
  }
}

STABLE_TORCH_LIBRARY_IMPL(fsn_d2_on_host, CPU, library) {
  library.impl("selective_roi_align", TORCH_BOX(&fsn_d2::selective_roi_align<fsn_d2::Host>));
  library.impl(
      "selective_roi_align_backward",
      TORCH_BOX(&fsn_d2::selective_roi_align_backward<fsn_d2::Host>));
  library.impl("selective_roi_pool", TORCH_BOX(&fsn_d2::selective_roi_pool<fsn_d2::Host>));
  library.impl(
      "selective_roi_pool_backward", TORCH_BOX(&fsn_d2::selective_roi_pool_backward<fsn_d2::Host>));
}
