/* SPDX-License-Identifier: MIT
 *
 * `ringpoll integrate`: prepares the source tree of a library, so that its configure
 * script knows --with-uring.
 *
 * What is changed is a table of edits: a line that is known, found once, and what
 * stands before, behind or instead of it afterwards. All is worked out in memory and
 * looked at again; then every file that changes is written beside the old one, and
 * only when all are there do they take their places. A file is either as upstream made
 * it or as this table leaves it: anything else is refused, and the tree stays as it
 * was. So a second run finds nothing to do, and one that was interrupted is finished by
 * the next.
 */
#include "command.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define LARGEST_FILE (4 << 20)

enum place { BEFORE, BEHIND, INSTEAD };

struct edit {
    const char *file;
    enum place place;
    const char *known;
    const char *text;
};

static const struct edit libevent_edits[] = {
    {"configure.ac", BEHIND, "AM_CONDITIONAL(EPOLL_BACKEND, [test \"x$haveepoll\" = \"xyes\"])\n",
     "RINGPOLL_CHECK_URING([no], [ringpoll-event])\n"},
    {"Makefile.am", BEHIND, "SYS_SRC += epoll.c\n", "SYS_CORE_LIBS += $(RINGPOLL_LIBS)\n"},
    {"Makefile.am", BEHIND,
     "AM_CPPFLAGS = -I$(srcdir)/compat -I./include -I$(srcdir)/include $(SYS_INCLUDES) $(LIBEVENT_CPPFLAGS)\n",
     "AM_CPPFLAGS += $(RINGPOLL_CFLAGS)\n"},
    {"libevent.pc.in", INSTEAD, "Libs.private: @LIBS@\n", "Libs.private: @LIBS@ @RINGPOLL_LIBS@\n"},
    {"libevent_core.pc.in", INSTEAD, "Libs.private: @LIBS@\n", "Libs.private: @LIBS@ @RINGPOLL_LIBS@\n"},
    {"event.c", BEFORE, "/* Array of backends in order of preference. */\n",
     "#ifdef EVENT__HAVE_RINGPOLL\n"
     "#include <ringpoll/libevent.h>\n"
     "#endif\n"},
    {"event.c", BEHIND, "static const struct eventop *eventops[] = {\n",
     "#ifdef EVENT__HAVE_RINGPOLL\n"
     "\t&ringpoll_tree_ops,\n"
     "#endif\n"},
    {"bufferevent_sock.c", BEHIND, "#include \"iocp-internal.h\"\n#endif\n",
     "#ifdef EVENT__HAVE_RINGPOLL\n"
     "#include <ringpoll/event.h>\n"
     "#endif\n"},
    {"bufferevent_sock.c", BEHIND, "\t\treturn bufferevent_async_new_(base, fd, options);\n#endif\n",
     "#ifdef EVENT__HAVE_RINGPOLL\n"
     "\tif ((bufev = ringpoll_event_tree_bufferevent(base, fd, options)))\n"
     "\t\treturn bufev;\n"
     "#endif\n"},
    {"listener.c", BEHIND, "#include \"evthread-internal.h\"\n",
     "#ifdef EVENT__HAVE_RINGPOLL\n"
     "#include <ringpoll/event.h>\n"
     "#endif\n"},
    {"listener.c", BEFORE, "\tif (backlog > 0) {\n\t\tif (listen(fd, backlog) < 0)\n\t\t\treturn NULL;\n",
     "#ifdef EVENT__HAVE_RINGPOLL\n"
     "\t{\n"
     "\t\tstruct evconnlistener *made =\n"
     "\t\t    ringpoll_event_tree_listener(base, cb, ptr, flags, backlog, fd);\n"
     "\t\tif (made)\n"
     "\t\t\treturn made;\n"
     "\t}\n"
     "#endif\n"},
    {"test/test.sh", INSTEAD, "BACKENDS=\"EVPORT ", "BACKENDS=\"URING EVPORT "},
    {"test/regress_et.c", BEHIND, "\t\t(!strcmp(event_base_get_method(base), \"epoll\") ||\n",
     "\t\t!strcmp(event_base_get_method(base), \"io_uring\") ||\n"},
    {"test/include.am", BEHIND, "TESTS = \\\n\ttest_runner_epoll \\\n", "\ttest_runner_uring \\\n"},
    {"test/include.am", BEFORE, "test_runner_epoll: $(top_srcdir)/test/test.sh\n",
     "test_runner_uring: $(top_srcdir)/test/test.sh\n"
     "\t$(top_srcdir)/test/test.sh -b URING\n"},
};

static const struct edit libuv_edits[] = {
    {"configure.ac", BEFORE, "AC_CHECK_HEADERS([sys/ahafs_evProds.h])\n",
     "RINGPOLL_CHECK_URING([no], [ringpoll-uv-tree])\n"},
    {"Makefile.am", BEHIND, "libuv_la_CFLAGS = $(AM_CFLAGS)\n",
     "libuv_la_CFLAGS += $(RINGPOLL_CFLAGS)\n"
     "libuv_la_LIBADD = $(RINGPOLL_LIBS)\n"},
    {"include/uv.h", INSTEAD, "  UV_METRICS_IDLE_TIME\n} uv_loop_option;\n",
     "  UV_METRICS_IDLE_TIME,\n"
     "  UV_LOOP_EPOLL = 0x72700001 /* no io_uring: the loop stays on epoll */\n"
     "} uv_loop_option;\n"},
    {"src/unix/loop.c", BEFORE, "  if (option != UV_LOOP_BLOCK_SIGNAL)\n    return UV_ENOSYS;\n",
     "#ifdef HAVE_RINGPOLL\n"
     "  if (option == UV_LOOP_EPOLL) {\n"
     "    loop->flags |= RINGPOLL_UV_TREE_EPOLL;\n"
     "    return ringpoll_uv_tree_embed(loop->backend_fd) < 0 ? UV_EINVAL : 0;\n"
     "  }\n"
     "#endif\n"
     "\n"},
    {"src/unix/internal.h", BEHIND, "#include \"uv-common.h\"\n",
     "#ifdef HAVE_RINGPOLL\n"
     "# include <ringpoll/uv-tree.h>\n"
     "#endif\n"},
    {"src/unix/core.c", BEHIND, "int uv_backend_fd(const uv_loop_t* loop) {\n",
     "#ifdef HAVE_RINGPOLL\n"
     "  ((uv_loop_t*) loop)->flags |= RINGPOLL_UV_TREE_ASKED;\n"
     "  if (uv__has_active_reqs((uv_loop_t*) loop))\n"
     "    ringpoll_uv_tree_embed(loop->backend_fd);\n"
     "#endif\n"},
    {"src/unix/core.c", BEFORE, "  /* The if statement lets gcc compile it to a conditional store. Avoids\n",
     "#ifdef HAVE_RINGPOLL\n"
     "  if (loop->flags & RINGPOLL_UV_TREE_ASKED)\n"
     "    ringpoll_uv_tree_embed(loop->backend_fd);\n"
     "#endif\n"
     "\n"},
    {"src/unix/stream.c", BEHIND, "  if (QUEUE_EMPTY(&stream->write_completed_queue))\n    return;\n",
     "\n"
     "#ifdef HAVE_RINGPOLL\n"
     "  if (uv__stream_fd(stream) >= 0 &&\n"
     "      ringpoll_uv_tree_written(uv__stream_fd(stream)) == UV_EAGAIN) {\n"
     "    uv__io_start(stream->loop, &stream->io_watcher, POLLOUT);\n"
     "    return;\n"
     "  }\n"
     "#endif\n"},
    {"src/unix/stream.c", BEHIND, "  if (!(stream->flags & UV_HANDLE_READING))\n    return 0;\n",
     "\n"
     "#ifdef HAVE_RINGPOLL\n"
     "  if (!uv__is_closing(stream))\n"
     "    ringpoll_uv_tree_stopped(uv__stream_fd(stream));\n"
     "#endif\n"},
    {"src/unix/epoll.c", BEFORE, "  while (!QUEUE_EMPTY(&loop->watcher_queue)) {\n",
     "#ifdef HAVE_RINGPOLL\n"
     "  while ((fd = ringpoll_uv_tree_next_stopped()) != -1)\n"
     "    if ((unsigned) fd >= loop->nwatchers ||\n"
     "        loop->watchers[fd] == NULL ||\n"
     "        !(loop->watchers[fd]->pevents & POLLIN))\n"
     "      ringpoll_uv_tree_give_up(fd);\n"
     "#endif\n"
     "\n"},
    {"src/unix/stream.c", INSTEAD,
     "    /* Write queue drained. */\n"
     "    if (QUEUE_EMPTY(&stream->write_queue))\n",
     "    /* Write queue drained. */\n"
     "    if (QUEUE_EMPTY(&stream->write_queue) &&\n"
     "        QUEUE_EMPTY(&stream->write_completed_queue))\n"},
    {"src/unix/stream.c", BEFORE, "  return uv__try_write(stream, bufs, nbufs, send_handle);\n",
     "#ifdef HAVE_RINGPOLL\n"
     "  if (send_handle == NULL) {\n"
     "    if (nbufs > (unsigned) uv__getiovmax())\n"
     "      nbufs = uv__getiovmax();\n"
     "    do\n"
     "      err = ringpoll_uv_tree_try_write(uv__stream_fd(stream),\n"
     "                                       (const struct iovec*) bufs, nbufs);\n"
     "    while (err == UV__ERR(EINTR));\n"
     "    return err == UV__ERR(ENOBUFS) ? UV_EAGAIN : err;\n"
     "  }\n"
     "#endif\n"},
    {"src/unix/epoll.c", BEFORE, "    if (w->events == 0)\n      op = EPOLL_CTL_ADD;\n",
     "#ifdef HAVE_RINGPOLL\n"
     "    if (w->events == w->pevents)\n"
     "      continue; /* It was started and stopped again. */\n"
     "#endif\n"},
    {"src/unix/loop.c", BEFORE, "    if (w->pevents != 0 && QUEUE_EMPTY(&w->watcher_queue)) {\n",
     "#ifdef HAVE_RINGPOLL\n"
     "    w->events = 0; /* Also where it is queued: uv__io_poll compares. */\n"
     "#endif\n"},
    {"src/unix/fs.c", BEFORE, "#define POST  ",
     "#ifdef HAVE_RINGPOLL\n"
     "static int ringpoll_uv_tree_takes(uv_loop_t* loop, uv_fs_t* req);\n"
     "#else\n"
     "# define ringpoll_uv_tree_takes(loop, req) 0\n"
     "#endif\n"
     "\n"},
    {"src/unix/fs.c", BEFORE, "      uv__work_submit(loop,    ",
     "      if (ringpoll_uv_tree_takes(loop, req))                                  \\\n"
     "        return 0;                                                             \\\n"},
    {"src/unix/fs.c", BEFORE, "int uv_fs_access(uv_loop_t* loop,\n",
     "#ifdef HAVE_RINGPOLL\n"
     "# include <ringpoll/uv-tree-files.h>\n"
     "#endif\n"
     "\n\n"},
    {"src/unix/epoll.c", BEFORE, "      assert(fd >= 0);\n      assert((unsigned) fd < loop->nwatchers);\n\n      w = ",
     "#ifdef HAVE_RINGPOLL\n"
     "      if (fd == RINGPOLL_UV_TREE_FILES) {\n"
     "        uv__metrics_update_idle_time(loop);\n"
     "        ringpoll_uv_tree_files_done(loop);\n"
     "        nevents++;\n"
     "        continue;\n"
     "      }\n"
     "#endif\n"
     "\n"},
    {"src/threadpool.c", BEFORE, "    loop =  ((uv_fs_t*) req)->loop;\n",
     "#ifdef HAVE_RINGPOLL\n"
     "    {\n"
     "      uint64_t id;\n"
     "      memcpy(&id, req->reserved, sizeof(id));\n"
     "      if (ringpoll_uv_tree_file_cancel(((uv_fs_t*) req)->loop->backend_fd, id))\n"
     "        return 0;\n"
     "    }\n"
     "#endif\n"},
    {"src/unix/udp.c", BEFORE, "union uv__sockaddr {\n",
     "#ifdef HAVE_RINGPOLL\n"
     "# define uv__udp_inbox(handle) \\\n"
     "  ((struct ringpoll_uv_tree_inbox**) &(handle)->u.reserved[1])\n"
     "#endif\n"
     "\n"},
    {"src/unix/udp.c", BEHIND, "void uv__udp_close(uv_udp_t* handle) {\n",
     "#ifdef HAVE_RINGPOLL\n"
     "  ringpoll_uv_tree_inbox_free(uv__udp_inbox(handle));\n"
     "#endif\n"},
    {"src/unix/udp.c", INSTEAD, "  if (revents & POLLIN)\n    uv__udp_recvmsg(handle);\n",
     "#ifdef HAVE_RINGPOLL\n"
     "  if (ringpoll_uv_tree_unread(*uv__udp_inbox(handle)) &&\n"
     "      uv__io_active(w, POLLIN))\n"
     "    revents |= POLLIN;\n"
     "#endif\n"
     "  if (revents & POLLIN)\n"
     "    uv__udp_recvmsg(handle);\n"
     "#ifdef HAVE_RINGPOLL\n"
     "  if (ringpoll_uv_tree_received(*uv__udp_inbox(handle)) &&\n"
     "      uv__io_active(w, POLLIN))\n"
     "    uv__io_feed(loop, w);\n"
     "  if (!QUEUE_EMPTY(&handle->write_queue) && !uv__is_closing(handle))\n"
     "    revents |= POLLOUT; /* what was answered goes now, by one call */\n"
     "#endif\n"},
    {"src/unix/udp.c", BEHIND, "  count = 32;\n",
     "#ifdef HAVE_RINGPOLL\n"
     "  if (!uv_udp_using_recvmmsg(handle))\n"
     "    count = ringpoll_uv_tree_receives(uv__udp_inbox(handle),\n"
     "                                      handle->io_watcher.fd,\n"
     "                                      handle->loop->flags,\n"
     "                                      count);\n"
     "#endif\n"},
    {"src/unix/udp.c", BEFORE, "  for (k = 0; k < chunks; ++k) {\n    iov[k].iov_base",
     "#ifdef HAVE_RINGPOLL\n"
     "  chunks = ringpoll_uv_tree_slots(uv__udp_inbox(handle),\n"
     "                                  handle->io_watcher.fd,\n"
     "                                  handle->loop->flags,\n"
     "                                  chunks);\n"
     "#endif\n"},
    {"src/unix/udp.c", INSTEAD, "    nread = uv__recvmmsg(handle->io_watcher.fd, msgs, chunks);\n",
     "#ifdef HAVE_RINGPOLL\n"
     "    nread = ringpoll_uv_tree_receive_many(*uv__udp_inbox(handle),\n"
     "                                          handle->io_watcher.fd,\n"
     "                                          (struct mmsghdr*) msgs,\n"
     "                                          chunks);\n"
     "#else\n"
     "    nread = uv__recvmmsg(handle->io_watcher.fd, msgs, chunks);\n"
     "#endif\n"},
    {"src/unix/udp.c", INSTEAD, "    npkts = uv__sendmmsg(handle->io_watcher.fd, h, pkts);\n",
     "#ifdef HAVE_RINGPOLL\n"
     "    npkts = ringpoll_uv_tree_send_many(handle->io_watcher.fd,\n"
     "                                       (struct mmsghdr*) h,\n"
     "                                       pkts);\n"
     "#else\n"
     "    npkts = uv__sendmmsg(handle->io_watcher.fd, h, pkts);\n"
     "#endif\n"},
    {"src/unix/udp.c", INSTEAD, "      nread = recvmsg(handle->io_watcher.fd, &h, 0);\n",
     "#ifdef HAVE_RINGPOLL\n"
     "      nread = ringpoll_uv_tree_receive(*uv__udp_inbox(handle),\n"
     "                                       handle->io_watcher.fd,\n"
     "                                       &h);\n"
     "#else\n"
     "      nread = recvmsg(handle->io_watcher.fd, &h, 0);\n"
     "#endif\n"},
    {"src/unix/udp.c", BEFORE, "static void uv__udp_sendmmsg(uv_udp_t* handle) {\n",
     "#ifdef HAVE_RINGPOLL\n"
     "# undef UV__MMSG_MAXWIDTH\n"
     "# define UV__MMSG_MAXWIDTH RINGPOLL_UV_TREE_DATAGRAMS\n"
     "#endif\n"},
    {"src/unix/udp.c", BEFORE, "    for (i = 0, q = QUEUE_HEAD(&handle->write_queue);\n         i < pkts && q != &handle->write_queue;\n",
     "#ifdef HAVE_RINGPOLL\n"
     "    pkts = 1; /* the error is that of the first */\n"
     "#endif\n"},
    {"src/unix/udp.c", BEFORE, "  } else {\n    uv__io_start(handle->loop, &handle->io_watcher, POLLOUT);\n",
     "#ifdef HAVE_RINGPOLL\n"
     "  } else if (handle->io_watcher.pevents & POLLOUT) {\n"
     "    /* started by the one before it */\n"
     "#endif\n"},
    {"src/unix/udp.c", BEHIND, "  uv__io_init(&handle->io_watcher, uv__udp_io, fd);\n",
     "#ifdef HAVE_RINGPOLL\n"
     "  *uv__udp_inbox(handle) = NULL;\n"
     "#endif\n"},
    {"src/unix/udp.c", BEHIND, "  uv__io_start(handle->loop, &handle->io_watcher, POLLIN);\n",
     "#ifdef HAVE_RINGPOLL\n"
     "  if (ringpoll_uv_tree_unread(*uv__udp_inbox(handle)))\n"
     "    uv__io_feed(handle->loop, &handle->io_watcher);\n"
     "#endif\n"},
};

static const char *const libuv_versions[] = {"1.44.2", NULL};

static const char *const libevent_versions[] = {"2.1.12-stable", "2.1.13-stable", NULL};

static const struct project {
    const char *name;
    const char *init; /* in configure.ac, before the version */
    const char *const *versions;
    const char *macros; /* where ringpoll.m4 goes */
    const char *generate; /* what makes its configure script */
    const struct edit *edits;
    size_t edit_count;
} projects[] = {
    {"libevent", "AC_INIT(libevent,", libevent_versions, "m4/ringpoll.m4", "autoreconf -fi", libevent_edits,
     sizeof(libevent_edits) / sizeof(libevent_edits[0])},
    {"libuv", "AC_INIT([libuv],", libuv_versions, "m4/ringpoll.m4", "sh autogen.sh", libuv_edits,
     sizeof(libuv_edits) / sizeof(libuv_edits[0])},
};

struct file {
    const char *name; /* in the tree */
    char *before;     /* NULL: there is none yet */
    char *after;      /* NULL: stays as it is */
    mode_t mode;
    char *written; /* the name of what will take its place; "" when it has */
};

struct tree {
    const char *directory;
    const struct project *project;
    char version[64];
    struct file files[32];
    size_t file_count;
};

static int print_help(void)
{
    fputs("Usage: ringpoll integrate [OPTION]... libevent|libuv DIRECTORY\n"
          "Prepare the library's source in DIRECTORY for 'configure --with-uring[=PREFIX]'.\n\n"
          "      --dry-run  change nothing; print the names of the files that would change\n"
          "  -h, --help     print this and exit\n\n"
          "Known are libevent 2.1.12-stable and 2.1.13-stable and libuv 1.44.2, with or\n"
          "without a distribution's patches. After it, libevent's 'autoreconf -fi' or\n"
          "libuv's 'autogen.sh' makes the configure script.\n"
          "A tree that is prepared already, or that is not known, is left as it is.\n\n"
          "Exit status: 0 if the tree is prepared; 1 if it is not known or cannot be\n"
          "written, after a sentence; 2 for a wrong command line. See\n"
          "ringpoll-integrate(1).\n",
          stdout);
    return finish_output();
}

static bool path_of(char path[PATH_MAX], const char *directory, const char *name)
{
    int length = snprintf(path, PATH_MAX, "%s/%s", directory, name);
    if (length > 0 && length < PATH_MAX)
        return true;
    complain("the name '%s/%s' is too long.", directory, name);
    return false;
}

/* The text of a regular file, by malloc; NULL with errno set. */
static char *read_text(const char *path, mode_t *ret_mode)
{
    struct stat st;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0)
        return NULL;
    char *text = NULL;
    if (fstat(fd, &st) == 0) {
        errno = S_ISDIR(st.st_mode) ? EISDIR : !S_ISREG(st.st_mode) ? EINVAL : st.st_size > LARGEST_FILE ? EFBIG : 0;
        if (errno == 0)
            text = malloc((size_t)st.st_size + 1);
    }
    size_t have = 0;
    while (text != NULL && have < (size_t)st.st_size) {
        ssize_t got = read(fd, text + have, (size_t)st.st_size - have);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0) {
            errno = got == 0 ? EIO : errno;
            free(text);
            text = NULL;
        } else {
            have += (size_t)got;
        }
    }
    int error = errno;
    close(fd);
    errno = error;
    if (text != NULL) {
        text[have] = '\0';
        *ret_mode = st.st_mode & 07777;
        if (strlen(text) != have) { /* no text */
            free(text);
            errno = EINVAL;
            return NULL;
        }
    }
    return text;
}

static struct file *file_of(struct tree *tree, const char *name)
{
    for (size_t i = 0; i < tree->file_count; i++) {
        if (strcmp(tree->files[i].name, name) == 0)
            return &tree->files[i];
    }
    struct file *file = &tree->files[tree->file_count];
    char path[PATH_MAX];
    if (!path_of(path, tree->directory, name))
        return NULL;
    mode_t mode = 0;
    *file = (struct file){.name = name, .before = read_text(path, &mode)};
    file->mode = mode;
    if (file->before == NULL) {
        complain("'%s' is no source of %s %s that ringpoll knows: '%s': %s.", tree->directory, tree->project->name,
                 tree->version, name, strerror(errno));
        return NULL;
    }
    tree->file_count++;
    return file;
}

static size_t count_of(const char *text, const char *part)
{
    size_t count = 0;
    for (; (text = strstr(text, part)) != NULL; text++)
        count++;
    return count;
}

/* What stands in the file afterwards. */
static bool result_of(const struct edit *edit, char *result, size_t size)
{
    int length = snprintf(result, size, "%s%s%s", edit->place == BEHIND ? edit->known : "", edit->text,
                          edit->place == BEFORE ? edit->known : "");
    return length > 0 && (size_t)length < size;
}

static bool is_done(const char *text, const struct edit *edit)
{
    char result[2048];
    return result_of(edit, result, sizeof(result)) && count_of(text, result) == 1 && count_of(text, edit->text) == 1;
}

static char *replaced(const char *text, const char *known, const char *result)
{
    const char *at = strstr(text, known);
    size_t before = (size_t)(at - text), size = strlen(text) - strlen(known) + strlen(result) + 1;
    char *made = malloc(size);
    if (made != NULL) {
        memcpy(made, text, before);
        snprintf(made + before, size - before, "%s%s", result, at + strlen(known));
    }
    return made;
}

static bool apply(struct tree *tree, const struct edit *edit)
{
    struct file *file = file_of(tree, edit->file);
    if (file == NULL)
        return false;
    const char *text = file->after != NULL ? file->after : file->before;
    if (is_done(text, edit))
        return true;
    char result[2048];
    char first[80];
    snprintf(first, sizeof(first), "%.*s", (int)strcspn(edit->known + strspn(edit->known, "\t"), "\n"),
             edit->known + strspn(edit->known, "\t"));
    if (strstr(file->before, "ringpoll") != NULL || strstr(file->before, "RINGPOLL") != NULL) {
        complain("'%s/%s' was prepared by another version of ringpoll, or by hand: take a fresh tree.",
                 tree->directory, file->name);
        return false;
    }
    if (count_of(text, edit->known) != 1 || !result_of(edit, result, sizeof(result))) {
        complain("'%s/%s' is not as ringpoll knows it from %s %s: '%s' is there %zu times, not once.",
                 tree->directory, file->name, tree->project->name, tree->version, first, count_of(text, edit->known));
        return false;
    }
    char *made = replaced(text, edit->known, result);
    free(file->after);
    file->after = made;
    if (made == NULL) {
        complain("%s.", strerror(ENOMEM));
        return false;
    }
    return true;
}

/* The macro, as this ringpoll has it. */
static bool add_macros(struct tree *tree)
{
    char path[PATH_MAX];
    mode_t mode;
    if (!find_macros(path, sizeof(path)))
        return false;
    char *macros = read_text(path, &mode);
    if (macros == NULL) {
        complain("'%s': %s.", path, strerror(errno));
        return false;
    }
    struct file *file = &tree->files[tree->file_count++];
    *file = (struct file){.name = tree->project->macros, .mode = 0644};
    if (!path_of(path, tree->directory, file->name)) {
        free(macros);
        return false;
    }
    file->before = read_text(path, &mode);
    if (file->before == NULL && errno != ENOENT) {
        complain("'%s': %s.", path, strerror(errno));
        free(macros);
        return false;
    }
    if (file->before != NULL) {
        bool same = strcmp(file->before, macros) == 0;
        free(macros);
        if (!same)
            complain("'%s' comes from another version of ringpoll: take a fresh tree.", path);
        return same;
    }
    file->after = macros;
    return true;
}

static bool know_tree(struct tree *tree)
{
    char path[PATH_MAX];
    struct stat st;
    mode_t mode;
    if (stat(tree->directory, &st) != 0 || (!S_ISDIR(st.st_mode) && (errno = ENOTDIR))) {
        complain("'%s' is no source tree: %s.", tree->directory, strerror(errno));
        return false;
    }
    if (!path_of(path, tree->directory, "configure.ac"))
        return false;
    char *text = read_text(path, &mode);
    if (text == NULL) {
        complain("'%s' is no source tree of %s: 'configure.ac': %s.", tree->directory, tree->project->name,
                 strerror(errno));
        return false;
    }
    const char *version = strstr(text, tree->project->init);
    if (version != NULL) {
        version += strlen(tree->project->init);
        version += strspn(version, " [");
        snprintf(tree->version, sizeof(tree->version), "%.*s", (int)strcspn(version, "]),\n"), version);
    }
    free(text);
    if (version == NULL) {
        complain("'%s' is no source tree of %s: its configure.ac has no '%s…)'.", tree->directory,
                 tree->project->name, tree->project->init);
        return false;
    }
    for (const char *const *known = tree->project->versions; *known != NULL; known++) {
        if (strcmp(*known, tree->version) == 0)
            return true;
    }
    char list[128] = "";
    for (const char *const *known = tree->project->versions; *known != NULL; known++)
        snprintf(list + strlen(list), sizeof(list) - strlen(list), "%s%s", *list != '\0' ? ", " : "", *known);
    complain("'%s' is %s %s, which ringpoll does not know; it knows %s.", tree->directory, tree->project->name,
             tree->version, list);
    return false;
}

/* Writes text beside the file's place: its name by malloc, or NULL after a sentence. */
static char *write_beside(const struct tree *tree, const struct file *file, const char *text)
{
    char path[PATH_MAX];
    static const char end[] = ".ringpoll-XXXXXX";
    if (!path_of(path, tree->directory, file->name))
        return NULL;
    size_t length = strlen(path), size = strlen(text), done = 0;
    if (length + sizeof(end) > sizeof(path)) {
        complain("the name '%s' is too long.", path);
        return NULL;
    }
    memcpy(path + length, end, sizeof(end));
    int fd = mkstemp(path);
    bool fine = fd >= 0;
    while (fine && done < size) {
        ssize_t written = write(fd, text + done, size - done);
        if (written < 0 && errno == EINTR)
            continue;
        fine = written > 0;
        done += fine ? (size_t)written : 0;
    }
    fine = fine && fchmod(fd, file->mode) == 0;
    int error = errno;
    if (fd >= 0 && close(fd) != 0 && fine) {
        fine = false;
        error = errno;
    }
    char *name = fine ? strdup(path) : NULL;
    if (name == NULL) {
        if (fd >= 0)
            unlink(path);
        path[length] = '\0';
        complain("cannot write '%s': %s; the tree is as it was.", path, strerror(fine ? ENOMEM : error));
    }
    return name;
}

/* What was there, again. */
static void put_back(const struct tree *tree, struct file *file)
{
    char path[PATH_MAX];
    if (!path_of(path, tree->directory, file->name))
        return;
    if (file->before == NULL) {
        unlink(path);
        return;
    }
    char *old = write_beside(tree, file, file->before);
    if (old != NULL && rename(old, path) != 0)
        unlink(old);
    free(old);
}

static bool write_all(struct tree *tree)
{
    char path[PATH_MAX];
    bool fine = true;
    for (size_t i = 0; fine && i < tree->file_count; i++) {
        struct file *file = &tree->files[i];
        if (file->after != NULL)
            fine = (file->written = write_beside(tree, file, file->after)) != NULL;
    }
    for (size_t i = 0; fine && i < tree->file_count; i++) {
        struct file *file = &tree->files[i];
        if (file->written == NULL)
            continue;
        fine = path_of(path, tree->directory, file->name) && rename(file->written, path) == 0;
        if (fine)
            file->written[0] = '\0';
        else
            complain("cannot write '%s': %s; the tree is as it was.", path, strerror(errno));
    }
    for (size_t i = 0; i < tree->file_count; i++) {
        struct file *file = &tree->files[i];
        if (!fine && file->written != NULL && file->written[0] == '\0')
            put_back(tree, file);
        else if (file->written != NULL && file->written[0] != '\0')
            unlink(file->written);
        free(file->written);
        file->written = NULL;
    }
    return fine;
}

static int integrate(struct tree *tree, bool dry_run)
{
    if (!know_tree(tree))
        return STATUS_NO;
    for (size_t i = 0; i < tree->project->edit_count; i++) {
        if (!apply(tree, &tree->project->edits[i]))
            return STATUS_NO;
    }
    if (!add_macros(tree))
        return STATUS_NO;
    /* Each of them, in what the others made of the file, too. */
    for (size_t i = 0; i < tree->project->edit_count; i++) {
        const struct edit *edit = &tree->project->edits[i];
        const struct file *file = file_of(tree, edit->file);
        if (file == NULL || !is_done(file->after != NULL ? file->after : file->before, edit)) {
            complain("'%s/%s' does not take what ringpoll adds to it; the tree is as it was.", tree->directory,
                     edit->file);
            return STATUS_NO;
        }
    }
    size_t changed = 0;
    for (size_t i = 0; i < tree->file_count; i++) {
        if (tree->files[i].after == NULL)
            continue;
        changed++;
        if (dry_run)
            printf("%s\n", tree->files[i].name);
    }
    if (dry_run)
        return finish_output();
    if (!write_all(tree))
        return STATUS_NO;
    printf(changed > 0 ? "%s %s in '%s' is prepared.\n" : "%s %s in '%s' was prepared already: nothing changed.\n",
           tree->project->name, tree->version, tree->directory);
    if (changed > 0)
        printf("Next, there: %s && ./configure --with-uring && make\n", tree->project->generate);
    return finish_output();
}

int integrate_main(int argc, char **argv)
{
    static const struct option options[] = {
        {"help", no_argument, NULL, 0x100},
        {"dry-run", no_argument, NULL, 0x101},
        {NULL, 0, NULL, 0},
    };
    bool dry_run = false;
    int opt;
    while ((opt = getopt_long(argc, argv, ":h", options, NULL)) != -1) {
        if (opt == 'h' || opt == 0x100)
            return print_help();
        if (opt != 0x101)
            return complain_of_option("integrate", opt, argv);
        dry_run = true;
    }
    if (argc - optind != 2) {
        complain("'ringpoll integrate' takes the name of a library, libevent or libuv, and its source directory "
                 "(see 'ringpoll integrate --help').");
        return STATUS_USAGE;
    }
    struct tree tree = {.directory = argv[optind + 1]};
    for (size_t i = 0; i < sizeof(projects) / sizeof(projects[0]); i++) {
        if (strcmp(projects[i].name, argv[optind]) == 0)
            tree.project = &projects[i];
    }
    if (tree.project == NULL) {
        complain("'%s' is no library that ringpoll integrate knows; it knows libevent and libuv.", argv[optind]);
        return STATUS_USAGE;
    }
    int status = integrate(&tree, dry_run);
    for (size_t i = 0; i < tree.file_count; i++) {
        free(tree.files[i].before);
        free(tree.files[i].after);
    }
    return status;
}
