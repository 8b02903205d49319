// One mail by nodemailer: node send.mjs JSON, where JSON holds transport options and the message.
import { createRequire } from "node:module";

const require = createRequire("/var/lib/smtpguard-interop/node/");
const nodemailer = require("nodemailer");
const { transport, message } = JSON.parse(process.argv[2]);
const told = await nodemailer.createTransport(transport).sendMail(message);
console.log(told.response);
