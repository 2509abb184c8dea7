// Runs a function over row ranges on several threads. Ranges are cut at fixed row numbers, so results do not depend on threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <system_error>
#include <thread>
#include <vector>

namespace ipfast {

// Calls body(begin, end) for every range [k·grain, (k+1)·grain) of [0, rows). Threads draw ranges from one counter, because
// equal shares would wait for the slowest core. The first exception (memory) is rethrown after all threads have ended.
template <class Body>
void parallel_rows(int64_t rows, int64_t grain, int threads, const Body& body) {
    const int64_t ranges = (rows + grain - 1) / grain;
    std::atomic<int64_t> next{0};
    std::atomic<bool> failed{false};
    std::exception_ptr error;
    auto work = [&] {
        try {
            for (int64_t k; !failed.load() && (k = next.fetch_add(1)) < ranges;)
                body(k * grain, std::min(rows, (k + 1) * grain));
        } catch (...) {
            if (!failed.exchange(true)) error = std::current_exception();
        }
    };
    const int64_t helpers = std::min<int64_t>(std::max(threads, 1), ranges) - 1;
    std::vector<std::thread> pool;
    pool.reserve(helpers > 0 ? static_cast<size_t>(helpers) : 0);
    try {
        for (int64_t k = 0; k < helpers; ++k) pool.emplace_back(work);
    } catch (const std::system_error&) {  // no more threads are to be had: those that there are take all ranges
    }
    work();
    for (auto& thread : pool) thread.join();
    if (error) std::rethrow_exception(error);
}

}  // namespace ipfast
