// Makes logged kernel calls again, on buffers of exactly the logged size: built together with the kernels
// under AddressSanitizer and UndefinedBehaviorSanitizer, which end the program at the first fault.
//
// The file is described in call_log.py. Exit status: 0, or 1 where a call fails or fills memory with other
// bytes.

#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <vector>

namespace {

enum Kind : uint8_t { kWord = 0, kRead = 1, kFilled = 2 };

struct Reader {
    FILE* file;

    bool at_end() {
        const int next = getc(file);
        if (next != EOF) ungetc(next, file);
        return next == EOF;
    }
    void take(void* to, size_t bytes) {
        if (bytes && fread(to, 1, bytes, file) != bytes) {
            fputs("the log ends within a call\n", stderr);
            exit(2);
        }
    }
    template <class T>
    T number() {
        T value;
        take(&value, sizeof value);
        return value;
    }
};

struct Buffer {
    char* memory;
    std::vector<char> expected;
};

// 0, or 1 after saying what went wrong.
int make_call(Reader& reader, long number) {
    char name[256] = "qspec_recorded_";
    const size_t prefix = strlen(name), length = reader.number<uint32_t>();
    if (prefix + length >= sizeof name) return fprintf(stderr, "call %ld has too long a name\n", number), 2;
    reader.take(name + prefix, length);

    std::vector<uint64_t> words(reader.number<uint32_t>());
    std::vector<Buffer> buffers;
    for (uint64_t& word : words) {
        const auto kind = reader.number<uint8_t>();
        word = reader.number<uint64_t>();
        if (kind == kWord) continue;
        Buffer buffer = {static_cast<char*>(malloc(word)), {}};
        if (kind == kFilled) {
            buffer.expected.resize(word);
            reader.take(buffer.expected.data(), word);
            memset(buffer.memory, 0xa5, word);
        } else {
            reader.take(buffer.memory, word);
        }
        word = reinterpret_cast<uint64_t>(buffer.memory);
        buffers.push_back(buffer);
    }

    fprintf(stderr, "call %ld: %s\n", number, name + prefix);
    using Kernel = int (*)(const uint64_t*);
    const auto kernel = reinterpret_cast<Kernel>(dlsym(RTLD_DEFAULT, name));
    if (!kernel) return fputs("there is no such kernel\n", stderr), 1;
    if (const int status = kernel(words.data())) return fprintf(stderr, "it returned %d\n", status), 1;
    for (const Buffer& buffer : buffers) {
        const size_t size = buffer.expected.size();
        if (size && memcmp(buffer.memory, buffer.expected.data(), size)) {
            return fputs("it left other bytes than in the call that was logged\n", stderr), 1;
        }
        free(buffer.memory);
    }
    return 0;
}

}  // namespace

extern "C" int qspec_request_tiles();

int main(int argc, char** argv) {
    if (argc != 2) return fputs("usage: sanitized LOG\n", stderr), 2;
    if (qspec_request_tiles()) return fputs("the system refuses the tile registers of AMX\n", stderr), 2;
    Reader reader = {fopen(argv[1], "rb")};
    if (!reader.file) return perror(argv[1]), 2;
    long calls = 0;
    for (; !reader.at_end(); ++calls)
        if (const int status = make_call(reader, calls)) return status;
    printf("%ld calls\n", calls);
    return 0;
}
