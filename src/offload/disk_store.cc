#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>
#include <unordered_map>

#include "offload/block_file.h"
#include "offload/fetch_order.h"
#include "offload/host_bytes.h"
#include "offload/store.h"
#include "refrain/torch_error.h"

namespace refrain::offload {
namespace {

enum class State {
  kQueued,  ///< in memory, to be written
  kWriting,
  kWritten,  ///< in the file; in memory too if it was read ahead
  kStuck,    ///< could not be written: stays in memory
};

/// A value in the store. Guarded by the store's mutex, but for a thread's use of the memory that it took or, while it
/// is `kWriting` or `is_read`, of the block.
struct Entry {
  BlockFile::Block block;
  c10::Device device = c10::kCPU;
  HostBytes memory;
  State state = State::kQueued;
  int64_t place = 0;     ///< in `FetchOrder`
  bool is_read = false;  ///< some thread reads the block
  bool is_dropped = false;
  bool failed_ahead = false;  ///< reading ahead failed: its fetch retries and reports the error

  Bytes nbytes() const { return static_cast<Bytes>(block.nbytes); }
};
using EntryPtr = std::shared_ptr<Entry>;

/// Adds its lifetime to a statistic.
class Stall {
 public:
  Stall(int64_t& count, double& ms) : ms_(ms) { ++count; }
  ~Stall() { ms_ += std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start_).count(); }
  Stall(const Stall&) = delete;
  Stall& operator=(const Stall&) = delete;

 private:
  double& ms_;
  const std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

class DiskStore final : public Store, public std::enable_shared_from_this<DiskStore> {
 public:
  DiskStore(const OffloadOptions& options, std::unique_ptr<BlockDevice> device)
      : options_(options), file_(std::move(device), options.capacity(), options.compress()) {
    writer_ = std::thread([this] { write_queued(); });
    reader_ = std::thread([this] { read_ahead(); });
  }

  // No entry is left, as each holds the store.
  ~DiskStore() override {
    {
      std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    to_write_.notify_all();
    to_read_.notify_all();
    writer_.join();
    reader_.join();
  }

  std::shared_ptr<tape::Offloaded> store(const c10::Storage& bytes) override;

  void flush() override {
    {
      Lock lock(mutex_);
      changed_.wait(lock, [&] { return in_flight_ == 0 && !is_reading_ahead_; });
    }
    throw_if_failed();
  }

  OffloadStats stats() override {
    Lock lock(mutex_);
    auto now = stats_;
    now.in_flight_bytes = in_flight_;
    now.stored_bytes = file_.used();
    now.file_bytes = file_.size();
    return now;
  }

  void reset_stats() override {
    Lock lock(mutex_);
    stats_ = {};
  }

 private:
  using Lock = std::unique_lock<std::mutex>;

  class OnDisk final : public tape::Offloaded {
   public:
    OnDisk(std::shared_ptr<DiskStore> store, EntryPtr entry) : store_(std::move(store)), entry_(std::move(entry)) {}
    ~OnDisk() override { store_->drop(*entry_); }
    c10::Storage fetch() override { return store_->fetch(entry_); }

   private:
    const std::shared_ptr<DiskStore> store_;
    const EntryPtr entry_;
  };

  std::optional<BlockFile::Block> reserve(size_t nbytes);
  void refuse(Bytes nbytes, const std::string& why);
  void throw_if_failed();
  c10::Storage fetch(const EntryPtr& entry);
  c10::Storage read_now(const EntryPtr& entry, Lock& lock);
  void read_block(Entry& entry, Lock& lock, HostBytes& memory);
  std::vector<HostBytes> plan_ahead(const EntryPtr& from);
  void drop(Entry& entry);
  void free_if_dropped(const Entry& entry);
  void write_queued();
  void read_ahead();

  const OffloadOptions options_;
  BlockFile file_;
  std::mutex mutex_;  ///< guards what follows
  std::condition_variable to_write_, to_read_;
  std::condition_variable changed_;             ///< an entry was written or read
  bool is_reading_ahead_ = false;               ///< holds memory that no entry has
  std::deque<EntryPtr> queue_;                  ///< to be written, in order
  std::deque<EntryPtr> ahead_;                  ///< that should be in memory, as they will be fetched next; in order
  std::unordered_map<int64_t, EntryPtr> live_;  ///< by place
  FetchOrder order_;
  Bytes in_flight_ = 0;
  OffloadStats stats_;
  std::string failed_write_;  ///< not reported yet, if `strict`
  bool stopping_ = false;
  std::thread writer_, reader_;
};

// --- forward ---------------------------------------------------------------------------------------------------------

std::shared_ptr<tape::Offloaded> DiskStore::store(const c10::Storage& bytes) {
  const auto nbytes = static_cast<Bytes>(bytes.nbytes());
  if (nbytes == 0 || nbytes < options_.min_bytes()) return nullptr;
  throw_if_failed();
  auto block = reserve(bytes.nbytes());
  if (!block) return nullptr;
  const bool waits = nbytes > options_.max_in_flight();
  auto entry = std::make_shared<Entry>();
  entry->block = *block;
  entry->device = bytes.device();
  {
    Lock lock(mutex_);
    const auto has_room = [&] { return in_flight_ == 0 || in_flight_ + nbytes <= options_.max_in_flight(); };
    if (!has_room()) {
      const Stall stall(stats_.store_stalls, stats_.store_stall_ms);
      changed_.wait(lock, has_room);
    }
    in_flight_ += nbytes;
    entry->place = order_.stored();
    live_.emplace(entry->place, entry);
  }
  // From here on the handle owns it.
  auto handle = std::make_shared<OnDisk>(shared_from_this(), entry);
  const bool shares = waits && bytes.device().is_cpu();
  auto memory = shares ? HostBytes::sharing(bytes) : HostBytes::copy_of(bytes, options_.pin_memory());
  Lock lock(mutex_);
  entry->memory = std::move(memory);
  queue_.push_back(entry);
  to_write_.notify_one();
  if (waits) {
    const Stall stall(stats_.store_stalls, stats_.store_stall_ms);
    changed_.wait(lock, [&] { return entry->state == State::kWritten || entry->state == State::kStuck; });
    if (entry->state == State::kStuck) {
      lock.unlock();
      throw_if_failed();
      return nullptr;
    }
  }
  ++stats_.values;
  stats_.value_bytes += nbytes;
  return handle;
}

std::optional<BlockFile::Block> DiskStore::reserve(size_t nbytes) {
  try {
    return file_.reserve(nbytes);
  } catch (const OffloadError& error) {
    refuse(static_cast<Bytes>(nbytes), error.what());
    if (options_.strict()) throw;
    return std::nullopt;
  }
}

void DiskStore::refuse(Bytes nbytes, const std::string& why) {
  bool is_first;
  {
    Lock lock(mutex_);
    ++stats_.refused;
    stats_.refused_bytes += nbytes;
    is_first = std::exchange(stats_.problem, why).empty();
  }
  if (is_first && !options_.strict()) TORCH_WARN(why, " What does not fit is kept in memory.");
}

void DiskStore::throw_if_failed() {
  if (!options_.strict()) return;
  Lock lock(mutex_);
  if (!failed_write_.empty()) throw OffloadError(std::exchange(failed_write_, {}));
}

void DiskStore::write_queued() {
  Lock lock(mutex_);
  for (;;) {
    to_write_.wait(lock, [&] { return stopping_ || !queue_.empty(); });
    if (queue_.empty()) return;
    const auto entry = std::move(queue_.front());
    queue_.pop_front();
    entry->state = State::kWriting;
    auto memory = entry->memory;
    lock.unlock();
    std::string problem;
    try {
      file_.write(entry->block, memory.wait().data());
    } catch (const std::exception& error) {
      problem = error.what();
    }
    memory = {};
    lock.lock();
    if (problem.empty()) {
      stats_.written_bytes += static_cast<Bytes>(entry->block.stored);
      memory = std::exchange(entry->memory, {});
      entry->state = State::kWritten;
      free_if_dropped(*entry);
      lock.unlock();
      memory = {};  // before `flush` returns
      lock.lock();
    } else {
      entry->state = State::kStuck;
      free_if_dropped(*entry);
      lock.unlock();
      refuse(entry->nbytes(), problem);
      lock.lock();
      failed_write_ = problem;
    }
    in_flight_ -= entry->nbytes();
    changed_.notify_all();
  }
}

void DiskStore::drop(Entry& entry) {
  HostBytes memory;  // freed without the lock
  Lock lock(mutex_);
  entry.is_dropped = true;
  const auto is_it = [&](const EntryPtr& other) { return other.get() == &entry; };
  if (entry.state == State::kQueued) {
    std::erase_if(queue_, is_it);
    in_flight_ -= entry.nbytes();
    changed_.notify_all();
  }
  std::erase_if(ahead_, is_it);
  memory = std::exchange(entry.memory, {});
  free_if_dropped(entry);
  live_.erase(entry.place);
  if (live_.empty()) order_.step_ended();
}

void DiskStore::free_if_dropped(const Entry& entry) {
  if (entry.is_dropped && !entry.is_read && entry.state != State::kWriting) file_.free(entry.block);
}

// --- backward --------------------------------------------------------------------------------------------------------

c10::Storage DiskStore::fetch(const EntryPtr& entry) {
  std::vector<HostBytes> unwanted;  // freed without the lock
  Lock lock(mutex_);
  ++stats_.fetches;
  order_.fetched(entry->place);
  if (entry->is_read) {
    const Stall stall(stats_.fetch_stalls, stats_.fetch_stall_ms);
    changed_.wait(lock, [&] { return !entry->is_read; });
  }
  const bool on_disk = entry->state == State::kWritten;
  auto memory = on_disk ? std::exchange(entry->memory, {}) : entry->memory;
  std::erase(ahead_, entry);
  unwanted = plan_ahead(entry);
  if (on_disk && !memory) return read_now(entry, lock);
  if (on_disk) ++stats_.prefetched;
  lock.unlock();
  if (!on_disk) return memory.to(entry->device);
  return std::move(memory).take_to(entry->device);
}

c10::Storage DiskStore::read_now(const EntryPtr& entry, Lock& lock) {
  auto memory = HostBytes();
  {
    const Stall stall(stats_.fetch_stalls, stats_.fetch_stall_ms);
    read_block(*entry, lock, memory);
  }
  lock.unlock();
  return std::move(memory).take_to(entry->device);
}

// Without the lock, which is held again at the end.
void DiskStore::read_block(Entry& entry, Lock& lock, HostBytes& memory) {
  entry.is_read = true;
  lock.unlock();
  std::exception_ptr failure;
  std::string problem;
  try {
    memory = HostBytes::room(entry.block.nbytes, entry.device, options_.pin_memory());
    file_.read(entry.block, memory.wait().mutable_data());
  } catch (const std::exception& error) {
    failure = std::current_exception();
    problem = error.what();
  }
  lock.lock();
  entry.is_read = false;
  changed_.notify_all();
  free_if_dropped(entry);
  if (failure) {
    stats_.problem = problem;
    std::rethrow_exception(failure);
  }
  stats_.read_bytes += static_cast<Bytes>(entry.block.stored);
}

// Chooses what should be in memory once `from` has been fetched. @returns what was read ahead in vain.
std::vector<HostBytes> DiskStore::plan_ahead(const EntryPtr& from) {
  std::vector<HostBytes> unwanted;
  if (options_.prefetch() == 0) return unwanted;
  std::deque<EntryPtr> wanted;
  Bytes sum = 0;
  order_.visit_after(from->place, [&](int64_t place) {
    const auto found = live_.find(place);
    if (found == live_.end() || found->second == from || found->second->state != State::kWritten) return true;
    const auto& entry = found->second;
    if (sum > 0 && sum + entry->nbytes() > options_.prefetch()) return false;
    sum += entry->nbytes();
    wanted.push_back(entry);
    return sum < options_.prefetch();
  });
  for (const auto& entry : ahead_) {
    if (entry->memory && std::find(wanted.begin(), wanted.end(), entry) == wanted.end())
      unwanted.push_back(std::exchange(entry->memory, {}));
  }
  ahead_ = std::move(wanted);
  to_read_.notify_one();
  return unwanted;
}

void DiskStore::read_ahead() {
  Lock lock(mutex_);
  for (;;) {
    EntryPtr next;
    to_read_.wait(lock, [&] {
      const auto found = std::find_if(ahead_.begin(), ahead_.end(), [](const EntryPtr& entry) {
        return !entry->memory && !entry->is_read && !entry->failed_ahead;
      });
      next = found == ahead_.end() ? nullptr : *found;
      return stopping_ || next;
    });
    if (stopping_) return;
    is_reading_ahead_ = true;
    HostBytes memory;
    try {
      read_block(*next, lock, memory);
      if (std::find(ahead_.begin(), ahead_.end(), next) != ahead_.end()) next->memory = std::exchange(memory, {});
    } catch (const std::exception&) {
      next->failed_ahead = true;
    }
    if (memory || next->is_dropped) {
      lock.unlock();
      memory = {};
      next = nullptr;
      lock.lock();
    }
    is_reading_ahead_ = false;
    changed_.notify_all();
  }
}

}  // namespace

std::shared_ptr<Store> make_disk_store(const OffloadOptions& options, std::unique_ptr<BlockDevice> device) {
  return std::make_shared<DiskStore>(options, std::move(device));
}

}  // namespace refrain::offload
