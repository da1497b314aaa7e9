// gRPC from Node: a streamed answer, and an upload in pieces.
//
//   cd examples/node && npm ci && node client.mjs [CLIP [PROMPT]]
//
// WAVLLM_GRPC says where the server is (127.0.0.1:50051), WAVLLM_API_KEY who asks, where there are keys.

import { createReadStream } from "node:fs";
import { readFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import grpc from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";

const pathOf = (relative) => fileURLToPath(new URL(relative, import.meta.url));
const [clip = pathOf("../clips/evening.flac"), prompt = "What is said?"] = process.argv.slice(2);
const DEADLINE_MS = 60_000;
const CHUNK_BYTES = 64 * 1024;

// keepCase: field names as the proto has them; oneofs: `event.event` says which part is set.
const definition = loadSync("wavllm/v1/speech.proto", {
  includeDirs: [pathOf("../../proto")],
  keepCase: true,
  longs: Number,
  defaults: true,
  oneofs: true,
});
const { SpeechChat } = grpc.loadPackageDefinition(definition).wavllm.v1;

function metadata() {
  const headers = new grpc.Metadata();
  if (process.env.WAVLLM_API_KEY) headers.set("authorization", `Bearer ${process.env.WAVLLM_API_KEY}`);
  return headers;
}

const options = () => ({ deadline: Date.now() + DEADLINE_MS });

/** Prints an answer as it is made. Throws the status of a refusal or a failure. Leaving the loop cancels. */
async function print(label, call) {
  process.stdout.write(`${label}: `);
  for await (const event of call) {
    if (event.event === "delta") process.stdout.write(event.delta.text);
    if (event.event === "done") {
      console.log(`\n(${event.done.finish_reason}, ${event.done.usage.completion_tokens} tokens)`);
    }
  }
}

async function ask(client) {
  const request = { prompt, audio: { data: await readFile(clip) } };
  await print("streamed", client.ChatStream(request, metadata(), options()));
}

async function upload(client) {
  const call = client.ChatUpload(metadata(), options());
  const send = async () => {
    call.write({ config: { prompt } });
    for await (const chunk of createReadStream(clip, { highWaterMark: CHUNK_BYTES })) {
      // false: the buffer is full; a call that ended meanwhile drains no more
      if (!call.write({ chunk })) await new Promise((go) => call.once("drain", go).once("close", go));
    }
    call.end();
  };
  await Promise.all([send(), print("uploaded", call)]);
}

const target = process.env.WAVLLM_GRPC ?? "127.0.0.1:50051";
const client = new SpeechChat(target, grpc.credentials.createInsecure());
try {
  await ask(client);
  await upload(client);
} catch (error) {
  // code: a number of grpc.status; details: the server's words; metadata: grpc-status-details-bin
  console.error(`${grpc.status[error.code] ?? "failed"}: ${error.details ?? error.message}`);
  process.exitCode = 1;
} finally {
  client.close();
}
