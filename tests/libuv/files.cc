/* SPDX-License-Identifier: MIT
 *
 * File requests: what programs lean on. A read that the ring takes and one that the thread
 * pool takes are told apart by nothing that is asked here, but for who is faster.
 */
#include "support.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <memory>

namespace {

char text(uint64_t at)
{
    return static_cast<char>('a' + at % 7919 % 26);
}

struct Read {
    uv_fs_t request = {};
    std::string bytes;
    ssize_t result = -99;
    bool done = false;
    std::function<void()> then;
};

void on_read(uv_fs_t *request)
{
    auto *read = static_cast<Read *>(request->data);
    read->result = request->result;
    read->done = true;
    uv_fs_req_cleanup(request);
    if (read->then)
        read->then();
}

class Files : public LoopTest {
protected:
    int fd_ = -1;
    const size_t size_ = 300000;

    void SetUp() override
    {
        LoopTest::SetUp();
        const char *where = getenv("TMPDIR");
        std::string name = std::string(where ? where : "/tmp") + "/ringpoll-libuv-XXXXXX";
        fd_ = mkostemp(name.data(), O_CLOEXEC);
        ASSERT_GE(fd_, 0);
        unlink(name.c_str());
        std::string bytes(size_, '\0');
        for (size_t i = 0; i < size_; i++)
            bytes[i] = text(i);
        ASSERT_EQ(pwrite(fd_, bytes.data(), size_, 0), static_cast<ssize_t>(size_));
    }
    void TearDown() override
    {
        LoopTest::TearDown();
        close(fd_);
    }
    int start(Read *read, size_t length, int64_t offset, int fd = -1)
    {
        read->bytes.assign(length, '\0');
        read->request.data = read;
        read->done = false;
        uv_buf_t buffer = uv_buf_init(&read->bytes[0], static_cast<unsigned>(length));
        return uv_fs_read(&loop_, &read->request, fd < 0 ? fd_ : fd, &buffer, 1, offset, on_read);
    }
    static bool is_text(const Read &read, uint64_t at)
    {
        for (size_t i = 0; i < static_cast<size_t>(read.result); i++)
            if (read.bytes[i] != text(at + i))
                return false;
        return true;
    }
};

TEST_F(Files, TheCallbackComesFromTheLoopAndNeverFromTheCall)
{
    Read read;
    ASSERT_EQ(start(&read, 4096, 100), 0);
    EXPECT_FALSE(read.done);
    EXPECT_EQ(uv_loop_alive(&loop_), 1);
    EXPECT_EQ(uv_loop_close(&loop_), UV_EBUSY);
    EXPECT_EQ(uv_run(&loop_, UV_RUN_DEFAULT), 0);
    ASSERT_TRUE(read.done);
    EXPECT_EQ(read.result, 4096);
    EXPECT_TRUE(is_text(read, 100));
    EXPECT_EQ(uv_loop_alive(&loop_), 0);
}

TEST_F(Files, ReadsFromCallbacksOneAfterTheOther)
{
    Read read;
    unsigned left = 999;
    read.then = [&] {
        ASSERT_EQ(read.result, 128);
        ASSERT_TRUE(is_text(read, (left + 1) * 100));
        if (left-- > 0) {
            ASSERT_EQ(start(&read, 128, left * 100 + 100), 0);
        }
    };
    ASSERT_EQ(start(&read, 128, 100000), 0);
    uv_run(&loop_, UV_RUN_DEFAULT);
    EXPECT_EQ(left, static_cast<unsigned>(-1));
}

TEST_F(Files, ManyAtOnceEachGetItsOwnBytes)
{
    std::vector<std::unique_ptr<Read>> reads;
    for (unsigned i = 0; i < 600; i++) {
        reads.push_back(std::make_unique<Read>());
        ASSERT_EQ(start(reads.back().get(), 4096, i * 400), 0);
    }
    uv_run(&loop_, UV_RUN_DEFAULT);
    for (unsigned i = 0; i < 600; i++) {
        ASSERT_EQ(reads[i]->result, 4096) << i;
        ASSERT_TRUE(is_text(*reads[i], i * 400)) << i;
    }
}

TEST_F(Files, TheEndOfTheFileAndWhatIsBehindIt)
{
    for (unsigned many : {1u, 30u}) {
        std::vector<std::unique_ptr<Read>> reads;
        for (unsigned i = 0; i < 2 * many; i++) {
            reads.push_back(std::make_unique<Read>());
            ASSERT_EQ(start(reads.back().get(), 4096, static_cast<int64_t>(i % 2 ? size_ + 5 : size_ - 77)), 0);
        }
        uv_run(&loop_, UV_RUN_DEFAULT);
        for (unsigned i = 0; i < 2 * many; i++)
            EXPECT_EQ(reads[i]->result, i % 2 ? 0 : 77);
    }
}

TEST_F(Files, TheCurrentPositionMovesAndOneReadFollowsTheOther)
{
    Read read;
    lseek(fd_, 1000, SEEK_SET);
    for (unsigned i = 0; i < 20; i++) {
        ASSERT_EQ(start(&read, 5000, -1), 0);
        uv_run(&loop_, UV_RUN_DEFAULT);
        ASSERT_EQ(read.result, 5000);
        ASSERT_TRUE(is_text(read, 1000 + i * 5000));
    }
    EXPECT_EQ(lseek(fd_, 0, SEEK_CUR), 101000);
}

TEST_F(Files, MoreBuffersThanARequestHasRoomFor)
{
    for (int64_t offset : {int64_t{500}, int64_t{-1}}) {
        char bytes[9][50];
        uv_buf_t buffers[9];
        Read read;
        lseek(fd_, 500, SEEK_SET);
        read.request.data = &read;
        for (unsigned i = 0; i < 9; i++)
            buffers[i] = uv_buf_init(bytes[i], 50);
        ASSERT_EQ(uv_fs_read(&loop_, &read.request, fd_, buffers, 9, offset, on_read), 0);
        memset(buffers, 0, sizeof buffers); /* the array is copied */
        uv_run(&loop_, UV_RUN_DEFAULT);
        ASSERT_EQ(read.result, 450);
        for (unsigned i = 0; i < 450; i++)
            ASSERT_EQ(bytes[i / 50][i % 50], text(500 + i)) << i;
    }
}

TEST_F(Files, AMegabyteAtOnceAndNothingAtOnce)
{
    Read large, none;
    ASSERT_EQ(start(&large, 1 << 20, 0), 0);
    ASSERT_EQ(start(&none, 0, 0), 0);
    uv_run(&loop_, UV_RUN_DEFAULT);
    EXPECT_EQ(large.result, static_cast<ssize_t>(size_));
    EXPECT_TRUE(is_text(large, 0));
    EXPECT_EQ(none.result, 0);
}

TEST_F(Files, ErrorsComeByTheCallback)
{
    Read directory, closed, write_only;
    int root = open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC), null = open("/dev/null", O_WRONLY | O_CLOEXEC);
    ASSERT_EQ(start(&directory, 10, 0, root), 0);
    ASSERT_EQ(start(&closed, 10, 0, 99999), 0);
    ASSERT_EQ(start(&write_only, 10, 0, null), 0);
    uv_run(&loop_, UV_RUN_DEFAULT);
    EXPECT_EQ(directory.result, UV_EISDIR);
    EXPECT_EQ(closed.result, UV_EBADF);
    EXPECT_EQ(write_only.result, UV_EBADF);
    close(root);
    close(null);
}

TEST_F(Files, APipeThatHasNothingDoesNotHoldTheLoop)
{
    int ends[2];
    Read read, other;
    ASSERT_EQ(pipe2(ends, O_CLOEXEC), 0);
    ASSERT_EQ(start(&read, 10, -1, ends[0]), 0);
    ASSERT_EQ(start(&other, 10, 0), 0);
    run_until([&] { return other.done; });
    EXPECT_FALSE(read.done);
    ASSERT_EQ(write(ends[1], "late", 4), 4);
    run_until([&] { return read.done; });
    EXPECT_EQ(read.result, 4);
    close(ends[0]);
    close(ends[1]);
}

/* A number that was a file's is a pipe's: closed by the program, unseen by libuv. */
TEST_F(Files, ANumberThatWasAFilesMayBeAnothersNow)
{
    int ends[2], copy = dup(fd_);
    Read read;
    ASSERT_EQ(start(&read, 10, 0, copy), 0);
    uv_run(&loop_, UV_RUN_DEFAULT);
    EXPECT_EQ(read.result, 10);
    ASSERT_EQ(pipe2(ends, O_CLOEXEC), 0);
    ASSERT_EQ(dup2(ends[0], copy), copy);
    for (int64_t offset : {int64_t{-1}, int64_t{0}}) {
        ASSERT_EQ(start(&read, 10, offset, copy), 0);
        turn(3);
        ASSERT_EQ(write(ends[1], "now", 3), 3);
        run_until([&] { return read.done; });
        EXPECT_TRUE(read.result == 3 || read.result == UV_ESPIPE) << read.result;
        if (read.result == UV_ESPIPE) {
            char rest[3];
            EXPECT_EQ(::read(ends[0], rest, 3), 3);
        }
    }
    close(ends[0]);
    close(ends[1]);
    close(copy);
}

TEST_F(Files, ACancelledReadIsNotMadeAndAnotherIs)
{
    /* The pool is busy; what the ring has is not begun before the loop goes on. */
    Read reads[8];
    for (Read &read : reads)
        ASSERT_EQ(start(&read, 100, 0), 0);
    unsigned cancelled = 0;
    for (unsigned i = 0; i < 8; i += 2) {
        int answer = uv_cancel(reinterpret_cast<uv_req_t *>(&reads[i].request));
        ASSERT_TRUE(answer == 0 || answer == UV_EBUSY) << answer;
        cancelled += answer == 0;
        if (answer == UV_EBUSY)
            reads[i].result = 0;
    }
    unsigned told = 0;
    uv_run(&loop_, UV_RUN_DEFAULT);
    for (Read &read : reads) {
        EXPECT_TRUE(read.done);
        EXPECT_TRUE(read.result == 100 || read.result == UV_ECANCELED);
        told += read.result == UV_ECANCELED;
    }
    EXPECT_EQ(told, cancelled);
    if (on_tree()) {
        EXPECT_EQ(cancelled, 4u);
    }
    EXPECT_EQ(uv_cancel(reinterpret_cast<uv_req_t *>(&reads[1].request)), UV_EBUSY);
}

TEST_F(Files, TimersAndReadsGoOnBesideEachOther)
{
    Read read;
    unsigned reads = 0, ticks = 0;
    uv_timer_t timer;
    uv_timer_init(&loop_, &timer);
    timer.data = &ticks;
    uv_timer_start(&timer, [](uv_timer_t *t) {
        if (++*static_cast<unsigned *>(t->data) == 5)
            uv_timer_stop(t);
    }, 1, 1);
    read.then = [&] {
        if (ticks < 5) {
            reads++;
            ASSERT_EQ(start(&read, 64, 0), 0);
        }
    };
    ASSERT_EQ(start(&read, 64, 0), 0);
    uv_run(&loop_, UV_RUN_DEFAULT);
    EXPECT_EQ(ticks, 5u);
    EXPECT_GT(reads, 0u);
}

TEST_F(Files, WhoWaitsForTheBackendFdHearsOfAReadThatWasAskedBefore)
{
    Read read;
    ASSERT_EQ(start(&read, 1, 0), 0);
    uv_run(&loop_, UV_RUN_DEFAULT); /* what is to be heard is registered by that */
    ASSERT_EQ(start(&read, 100, 0), 0);
    struct pollfd look = {uv_backend_fd(&loop_), POLLIN, 0};
    for (int i = 0; i < 100 && !read.done; i++) {
        ASSERT_EQ(poll(&look, 1, 10000), 1);
        uv_run(&loop_, UV_RUN_NOWAIT);
    }
    EXPECT_EQ(read.result, 100);
    /* And of one that is asked from now on. */
    ASSERT_EQ(start(&read, 100, 5), 0);
    for (int i = 0; i < 100 && !read.done; i++) {
        ASSERT_EQ(poll(&look, 1, 10000), 1);
        uv_run(&loop_, UV_RUN_NOWAIT);
    }
    EXPECT_EQ(read.result, 100);
    EXPECT_TRUE(is_text(read, 5));
}

TEST_F(Files, AnotherThreadMayRunTheLoopThanTheOneThatAsked)
{
    Read first, second;
    ASSERT_EQ(start(&first, 100, 7), 0);
    uv_thread_t thread;
    ASSERT_EQ(uv_thread_create(&thread, [](void *loop) { uv_run(static_cast<uv_loop_t *>(loop), UV_RUN_DEFAULT); },
                               &loop_), 0);
    uv_thread_join(&thread);
    EXPECT_EQ(first.result, 100);
    EXPECT_TRUE(is_text(first, 7));
    ASSERT_EQ(start(&second, 100, 9), 0);
    uv_run(&loop_, UV_RUN_DEFAULT);
    EXPECT_EQ(second.result, 100);
    EXPECT_TRUE(is_text(second, 9));
}

TEST_F(Files, AChildReadsWithTheLoopThatItWasForkedWith)
{
    Read before;
    ASSERT_EQ(start(&before, 100, 0), 0);
    uv_run(&loop_, UV_RUN_DEFAULT);
    pid_t child = fork();
    if (child == 0) {
        bool good = uv_loop_fork(&loop_) == 0;
        Read read;
        good = good && start(&read, 100, 3) == 0;
        uv_run(&loop_, UV_RUN_DEFAULT);
        _exit(good && read.result == 100 && is_text(read, 3) ? 0 : 1);
    }
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    EXPECT_EQ(status, 0);
    ASSERT_EQ(start(&before, 100, 11), 0);
    uv_run(&loop_, UV_RUN_DEFAULT);
    EXPECT_TRUE(is_text(before, 11));
}

struct Call {
    uv_fs_t request = {};
    ssize_t result = -99;
};

void on_call(uv_fs_t *request)
{
    static_cast<Call *>(request->data)->result = request->result;
    uv_fs_req_cleanup(request);
}

TEST_F(Files, AFilesLifeFromOpenToUnlink)
{
    const char *where = getenv("TMPDIR");
    std::string name = std::string(where ? where : "/tmp") + "/ringpoll-libuv-life-" + std::to_string(getpid()),
                second = name + ".2";
    Call call;
    call.request.data = &call;
    auto answer = [&](int error) {
        EXPECT_EQ(error, 0);
        EXPECT_EQ(call.result, -99);
        uv_run(&loop_, UV_RUN_DEFAULT);
        ssize_t result = call.result;
        call.result = -99;
        call.request.data = &call;
        return result;
    };
    std::string path = name;
    int error = uv_fs_open(&loop_, &call.request, path.c_str(), O_RDWR | O_CREAT | O_EXCL, 0640, on_call);
    path.assign(path.size(), '?'); /* the name is copied */
    auto fd = static_cast<uv_file>(answer(error));
    ASSERT_GE(fd, 0);
    struct stat status;
    ASSERT_EQ(fstat(fd, &status), 0);
    EXPECT_EQ(status.st_mode & 0777 & ~0077u, 0600u);
    EXPECT_EQ(fcntl(fd, F_GETFD), FD_CLOEXEC);
    EXPECT_EQ(answer(uv_fs_open(&loop_, &call.request, name.c_str(), O_RDWR | O_CREAT | O_EXCL, 0640, on_call)),
              UV_EEXIST);
    char bytes[9][10];
    uv_buf_t buffers[9];
    for (unsigned i = 0; i < 9; i++) {
        memset(bytes[i], 'a' + static_cast<int>(i), 10);
        buffers[i] = uv_buf_init(bytes[i], 10);
    }
    EXPECT_EQ(answer(uv_fs_write(&loop_, &call.request, fd, buffers, 9, -1, on_call)), 90);
    EXPECT_EQ(answer(uv_fs_write(&loop_, &call.request, fd, buffers, 1, -1, on_call)), 10);
    EXPECT_EQ(answer(uv_fs_write(&loop_, &call.request, fd, buffers, 9, 200, on_call)), 90);
    EXPECT_EQ(lseek(fd, 0, SEEK_CUR), 100);
    EXPECT_EQ(lseek(fd, 0, SEEK_END), 290);
    EXPECT_EQ(answer(uv_fs_fsync(&loop_, &call.request, fd, on_call)), 0);
    EXPECT_EQ(answer(uv_fs_fdatasync(&loop_, &call.request, fd, on_call)), 0);
    EXPECT_EQ(answer(uv_fs_rename(&loop_, &call.request, name.c_str(), second.c_str(), on_call)), 0);
    EXPECT_EQ(answer(uv_fs_rename(&loop_, &call.request, name.c_str(), second.c_str(), on_call)), UV_ENOENT);
    EXPECT_EQ(answer(uv_fs_close(&loop_, &call.request, fd, on_call)), 0);
    EXPECT_EQ(fcntl(fd, F_GETFD), -1);
    EXPECT_EQ(answer(uv_fs_close(&loop_, &call.request, fd, on_call)), UV_EBADF);
    EXPECT_EQ(answer(uv_fs_unlink(&loop_, &call.request, second.c_str(), on_call)), 0);
    EXPECT_EQ(answer(uv_fs_unlink(&loop_, &call.request, second.c_str(), on_call)), UV_ENOENT);
}

TEST_F(Files, AWriteThatMeetsALimitTellsWhatWasWritten)
{
    pid_t child = fork(); /* the limit and the signal are the process's */
    if (child == 0) {
        bool good = uv_loop_fork(&loop_) == 0;
        signal(SIGXFSZ, SIG_IGN);
        struct rlimit limit = {size_ + 1000, size_ + 1000};
        setrlimit(RLIMIT_FSIZE, &limit);
        std::string bytes(3000, 'x');
        uv_buf_t buffers[6];
        for (unsigned i = 0; i < 6; i++)
            buffers[i] = uv_buf_init(&bytes[i * 500], 500);
        Call call;
        call.request.data = &call;
        good = good && uv_fs_write(&loop_, &call.request, fd_, buffers, 6, static_cast<int64_t>(size_) - 700, on_call) == 0;
        uv_run(&loop_, UV_RUN_DEFAULT);
        good = good && call.result == 1700;
        call.request.data = &call;
        good = good && uv_fs_write(&loop_, &call.request, fd_, buffers, 1, static_cast<int64_t>(size_) + 1000, on_call) == 0;
        uv_run(&loop_, UV_RUN_DEFAULT);
        _exit(good && call.result == UV_EFBIG ? 0 : 1);
    }
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    EXPECT_EQ(status, 0);
}

TEST_F(Files, HundredsOfWritesAtOnce)
{
    std::vector<std::unique_ptr<Call>> calls;
    std::string bytes(size_, '\0');
    for (size_t i = 0; i < size_; i++)
        bytes[i] = text(i + 13);
    for (unsigned i = 0; i < 300; i++) {
        calls.push_back(std::make_unique<Call>());
        calls[i]->request.data = calls[i].get();
        uv_buf_t buffer = uv_buf_init(&bytes[i * 1000], 1000);
        ASSERT_EQ(uv_fs_write(&loop_, &calls[i]->request, fd_, &buffer, 1, i * 1000, on_call), 0);
    }
    uv_run(&loop_, UV_RUN_DEFAULT);
    for (unsigned i = 0; i < 300; i++)
        ASSERT_EQ(calls[i]->result, 1000) << i;
    Read read;
    ASSERT_EQ(start(&read, size_, 0), 0);
    uv_run(&loop_, UV_RUN_DEFAULT);
    ASSERT_EQ(read.result, static_cast<ssize_t>(size_));
    EXPECT_TRUE(is_text(read, 13));
}

TEST_F(Files, AnOpenOfAFifoWaitsForItsOtherEnd)
{
    const char *where = getenv("TMPDIR");
    std::string name = std::string(where ? where : "/tmp") + "/ringpoll-libuv-fifo-" + std::to_string(getpid());
    ASSERT_EQ(mkfifo(name.c_str(), 0600), 0);
    Call call;
    Read read;
    call.request.data = &call;
    ASSERT_EQ(uv_fs_open(&loop_, &call.request, name.c_str(), O_RDONLY, 0, on_call), 0);
    ASSERT_EQ(start(&read, 10, 0), 0);
    run_until([&] { return read.done; });
    turn(5);
    EXPECT_EQ(call.result, -99);
    int other = open(name.c_str(), O_WRONLY | O_CLOEXEC);
    run_until([&] { return call.result != -99; });
    EXPECT_GE(call.result, 0);
    close(static_cast<int>(call.result));
    close(other);
    unlink(name.c_str());
}

TEST_F(Files, WritesAndReadsOfOneFileFollowEachOther)
{
    Read read;
    char bytes[100];
    memset(bytes, 'W', sizeof bytes);
    uv_buf_t buffer = uv_buf_init(bytes, sizeof bytes);
    bool written = false;
    uv_fs_t write;
    write.data = &written;
    ASSERT_EQ(uv_fs_write(&loop_, &write, fd_, &buffer, 1, 50, [](uv_fs_t *request) {
        *static_cast<bool *>(request->data) = request->result == 100;
        uv_fs_req_cleanup(request);
    }), 0);
    uv_run(&loop_, UV_RUN_DEFAULT);
    EXPECT_TRUE(written);
    ASSERT_EQ(start(&read, 100, 50), 0);
    uv_run(&loop_, UV_RUN_DEFAULT);
    EXPECT_EQ(read.bytes, std::string(100, 'W'));
}

} // namespace
